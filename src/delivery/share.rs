//! A shard's fair part of a next hop's window.
//!
//! Slots of the window go to whom asks first, so that one busy shard can use all of them while the
//! others are idle. When a shard with less than its share (the window divided by the shards, one
//! at least) wants a slot and there is none, it starves, and says so in the shared state. Then
//!
//! - a shard with more than its share gives a slot back between two messages ([`owes`]);
//! - a shard that has its share takes no more, so the slot waits for the one that starves.
//!
//! While the window is full and a shard has less than its share, some other has more, so a
//! starving shard waits at most until one transaction ends somewhere. With more shards than slots
//! the share of a holder is none, and the slots go round.
//!
//! The starving shard asks again after `NEXT_HOP_STARVED_RETRY_MS`. Rejected: waking it by its
//! doorbell, which needs a mark per shard and next hop, and a rule for wake-ups that come late or
//! to a shard that wants nothing any more; starving is rare, and over within a transaction.
//!
//! [`owes`]: WindowShare::owes

use super::next_hop::NextHopState;

/// A next hop's window, and among how many shards it is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Most transactions in flight, all shards.
    pub slots: u32,
    /// How many shards there are.
    pub shards: u32,
}

impl Window {
    /// What each shard may keep while another starves; none when there are more shards than slots.
    fn share(self) -> u32 {
        self.slots / self.shards.max(1)
    }
}

/// The slots that one shard holds of one next hop's window, and whether it starves. The shard's
/// own; every method is given the same next hop's state.
#[derive(Debug, Default)]
pub struct WindowShare {
    held: u32,
    starving: bool,
}

impl WindowShare {
    /// Nothing held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Slots held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Whether this shard said that it starves: it asks again soon, or [`leaves`](Self::leave).
    #[must_use]
    pub fn is_starving(&self) -> bool {
        self.starving
    }

    /// Takes a slot for a transaction; every true is owed one [`give_back`](Self::give_back).
    /// False: the window is full, or what is free is for a shard that starves. If this shard has
    /// less than its share, it starves from now on.
    #[must_use]
    pub fn try_take(&mut self, next_hop: &NextHopState, window: Window) -> bool {
        let share = window.share();
        let has_its_share = self.held >= share.max(1);
        let others_starve = next_hop.starving() > u32::from(self.starving);
        // Where slots go round, one that did not starve before those that do waits its turn.
        let is_for_others = others_starve && (has_its_share || (share == 0 && !self.starving));
        if !is_for_others && next_hop.try_acquire(window.slots) {
            self.held += 1;
            self.leave(next_hop);
            return true;
        }
        if !has_its_share && !self.starving {
            next_hop.starve();
            self.starving = true;
        }
        false
    }

    /// Whether a slot should be given back before the next message, because another shard starves
    /// and this one has more than its share. Asked after each transaction; costs a load.
    #[must_use]
    pub fn owes(&self, next_hop: &NextHopState, window: Window) -> bool {
        self.held > window.share() && next_hop.starving() > 0
    }

    /// Gives back a slot: its transaction has ended.
    pub fn give_back(&mut self, next_hop: &NextHopState) {
        debug_assert!(self.held > 0, "a slot was given back that was never taken");
        if let Some(held) = self.held.checked_sub(1) {
            self.held = held;
            next_hop.release();
        }
    }

    /// Nothing waits for a slot here any more: this shard starves no longer.
    pub fn leave(&mut self, next_hop: &NextHopState) {
        if self.starving {
            self.starving = false;
            next_hop.fed();
        }
    }
}
