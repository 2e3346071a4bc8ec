//! Fair shares of a window: a busy shard and late ones, and any order of events.

use super::{NextHopState, Window, WindowShare};
use proptest::prelude::*;

#[test]
fn one_busy_shard_has_it_all_until_another_wants_some() {
    let next_hop = NextHopState::new();
    let window = Window { slots: 4, shards: 2 };
    let [mut busy, mut late] = [WindowShare::new(), WindowShare::new()];
    assert!((0..4).all(|_| busy.try_take(&next_hop, window)));
    assert!(!busy.try_take(&next_hop, window) && !busy.is_starving(), "it has its share");
    assert!(!busy.owes(&next_hop, window));

    for held in 1..=2 {
        assert!(!late.try_take(&next_hop, window) && late.is_starving());
        assert!(busy.owes(&next_hop, window));
        busy.give_back(&next_hop);
        assert!(!busy.try_take(&next_hop, window), "it is for the other");
        assert!(late.try_take(&next_hop, window) && !late.is_starving());
        assert_eq!(late.held(), held);
        assert!(!busy.owes(&next_hop, window));
    }
    assert!(!late.try_take(&next_hop, window) && !late.is_starving());
    assert_eq!((busy.held(), late.held(), next_hop.starving()), (2, 2, 0));
}

#[test]
fn a_shard_that_wants_nothing_any_more_does_not_starve() {
    let next_hop = NextHopState::new();
    let window = Window { slots: 1, shards: 3 };
    let [mut one, mut two] = [WindowShare::new(), WindowShare::new()];
    assert!(one.try_take(&next_hop, window));
    assert!(!two.try_take(&next_hop, window) && !two.try_take(&next_hop, window));
    assert_eq!(next_hop.starving(), 1, "said once");
    assert!(one.owes(&next_hop, window), "more shards than slots: the slot goes round");
    two.leave(&next_hop);
    two.leave(&next_hop);
    assert_eq!(next_hop.starving(), 0);
    assert!(!one.owes(&next_hop, window));
}

proptest! {
    /// Shards that take, end and give up in any order: the counts agree at each step. Then all
    /// want as much as they can get: everyone gets its share within a few rounds.
    #[test]
    fn everyone_gets_its_share(
        slots in 1_u32..12,
        shards in 1_usize..6,
        steps in prop::collection::vec((0_usize..6, 0_u8..4), 0..100),
    ) {
        let next_hop = NextHopState::new();
        let window = Window { slots, shards: shards as u32 };
        let mut all: Vec<WindowShare> = (0..shards).map(|_| WindowShare::new()).collect();
        for (shard, step) in steps {
            let share = &mut all[shard % shards];
            match step {
                0 | 1 => {
                    let _ = share.try_take(&next_hop, window);
                }
                2 if share.held() > 0 => share.give_back(&next_hop),
                _ => share.leave(&next_hop),
            }
            prop_assert_eq!(next_hop.in_flight(), all.iter().map(WindowShare::held).sum::<u32>());
            prop_assert!(next_hop.in_flight() <= slots);
            let starving = all.iter().filter(|share| share.is_starving()).count();
            prop_assert_eq!(next_hop.starving() as usize, starving);
        }

        let mut served = vec![0; shards];
        for _ in 0..3 * (slots + window.shards) {
            for (share, served) in all.iter_mut().zip(&mut served) {
                // A transaction ends; the slot is kept for the next message, or given back.
                if share.owes(&next_hop, window) {
                    share.give_back(&next_hop);
                }
                while share.try_take(&next_hop, window) {}
                *served += share.held();
            }
        }
        prop_assert!(served.iter().all(|&served| served > 0), "{:?}", served);
        let share = slots / window.shards;
        prop_assert!(all.iter().all(|each| each.held() >= share), "{:?}", all);
    }
}
