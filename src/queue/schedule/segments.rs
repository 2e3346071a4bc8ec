//! The account of a shard's segments: which are needed, which may go, which are written again.
//!
//! A segment is removable when no message in it is needed, it is not written to, and no segment is
//! left that it must outlive: those whose messages its outcomes settle, from which its records were
//! taken over, or of which it says that records are void. Were it removed earlier, those messages
//! would come back to life at the next start. What is outlived is always older, so the oldest
//! segment waits for none: once its live messages are written again elsewhere it can go, and then
//! the next.
//!
//! So the segments are bounded. They take at most [`SEGMENTS_PER_LIVE_MAX`] times the octets of the
//! live records and [`SEGMENTS_SLACK`] segments; beyond that the oldest segment's live records are
//! appended again. Of what is written then at most a third is such copies: to be over the bound
//! again, three octets must have come and gone for each live one.

use crate::limits::{SEGMENTS_PER_LIVE_MAX, SEGMENTS_SLACK};
use crate::queue::recover::{FoundSegment, Spare};
use crate::queue::spool::Location;
use std::collections::{BTreeMap, BTreeSet};

/// All segments of a shard.
#[derive(Debug, Default)]
pub(super) struct Segments {
    by_generation: BTreeMap<u64, Segment>,
    /// Octets of the files.
    octets: u64,
    /// Octets of live records.
    live_octets: u64,
}

#[derive(Debug, Default)]
struct Segment {
    /// Messages in it that are needed, or held.
    live: u32,
    /// Octets of its file.
    octets: u64,
    /// The segments it must outlive.
    settles: BTreeSet<u64>,
    /// It is being removed.
    going: bool,
}

impl Segments {
    pub fn resume(&mut self, segments: Vec<FoundSegment>) {
        let present: BTreeSet<u64> = segments.iter().map(|found| found.generation).collect();
        for FoundSegment { generation, octets, settles } in segments {
            let settles = settles.intersection(&present).copied().collect();
            self.octets += octets;
            self.by_generation.insert(generation, Segment { octets, settles, ..Segment::default() });
        }
    }

    pub fn len(&self) -> usize {
        self.by_generation.len()
    }

    /// Octets of their files.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Octets of live records.
    pub fn live_octets(&self) -> u64 {
        self.live_octets
    }

    fn segment(&mut self, generation: u64) -> &mut Segment {
        self.by_generation.entry(generation).or_default()
    }

    pub fn made(&mut self, generation: u64, octets: u64, voids: Option<u64>) {
        let segment = self.segment(generation);
        let before = std::mem::replace(&mut segment.octets, octets);
        self.octets = self.octets - before + octets;
        if let Some(voids) = voids {
            self.note_settles(generation, voids);
        }
    }

    /// A live message; one whose record was lost is nowhere.
    pub fn add(&mut self, location: Location) {
        if location.octets == 0 {
            return;
        }
        self.hold(location.generation);
        self.live_octets += u64::from(location.octets);
    }

    /// A live message is no more. True: it was the last one needed in its segment.
    pub fn remove(&mut self, location: Location) -> bool {
        if location.octets == 0 {
            return false;
        }
        self.unhold(location.generation);
        self.live_octets = self.live_octets.saturating_sub(u64::from(location.octets));
        self.by_generation.get(&location.generation).is_none_or(|segment| segment.live == 0)
    }

    pub fn hold(&mut self, generation: u64) {
        self.segment(generation).live += 1;
    }

    pub fn unhold(&mut self, generation: u64) {
        if let Some(segment) = self.by_generation.get_mut(&generation) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// The segment `by` must outlive this one.
    pub fn note_settles(&mut self, by: u64, generation: u64) {
        let is_there = self.by_generation.contains_key(&generation);
        let segment = self.segment(by);
        if is_there && generation < by {
            segment.settles.insert(generation);
        }
    }

    /// The newest is never removable: it tells the next start which ids were given out, whatever
    /// has become of the clock.
    pub fn removable(&mut self, oldest_in_use: u64) -> Option<Spare> {
        let newest = *self.by_generation.keys().next_back()?;
        let (&generation, segment) = self
            .by_generation
            .range_mut(..oldest_in_use.min(newest))
            .find(|(_, segment)| segment.live == 0 && segment.settles.is_empty() && !segment.going)?;
        segment.going = true;
        Some(Spare { generation, octets: segment.octets })
    }

    /// It could not be removed.
    pub fn stays(&mut self, generation: u64) {
        self.segment(generation).going = false;
    }

    pub fn gone(&mut self, generation: u64) {
        if let Some(segment) = self.by_generation.remove(&generation) {
            self.octets = self.octets.saturating_sub(segment.octets);
        }
        for segment in self.by_generation.values_mut() {
            segment.settles.remove(&generation);
        }
    }

    pub fn to_rewrite(&self, oldest_in_use: u64, capacity: u64) -> Option<u64> {
        // Until it is done, others are made: the one that was reason to look, and one more.
        let margin = 2 * capacity;
        if self.octets + margin <= SEGMENTS_PER_LIVE_MAX * self.live_octets + SEGMENTS_SLACK * capacity {
            return None;
        }
        let (&generation, _) = self.by_generation.range(..oldest_in_use).find(|(_, segment)| !segment.going)?;
        Some(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: u64, octets: u32) -> Location {
        Location { generation, offset: 72, octets }
    }

    #[test]
    fn a_segment_goes_when_those_it_must_outlive_have_gone() {
        let mut segments = Segments::default();
        for generation in 1..=4 {
            segments.made(generation, 100, None);
        }
        segments.add(at(1, 10));
        segments.note_settles(2, 1);
        segments.made(3, 100, Some(2));
        assert_eq!(segments.removable(4), None);
        assert!(segments.remove(at(1, 10)));
        for generation in 1..=3 {
            assert_eq!(segments.removable(4), Some(Spare { generation, octets: 100 }));
            assert_eq!(segments.removable(4), None, "told once");
            segments.stays(generation);
            assert!(segments.removable(4).is_some(), "another try");
            segments.gone(generation);
        }
        assert_eq!((segments.removable(9), segments.len(), segments.octets), (None, 1, 100), "the newest stays");
    }

    #[test]
    fn what_is_gone_need_not_be_outlived() {
        let mut segments = Segments::default();
        segments.made(2, 100, Some(1));
        segments.note_settles(2, 1);
        segments.note_settles(2, 3);
        segments.made(4, 100, None);
        assert_eq!(segments.removable(4).map(|spare| spare.generation), Some(2));
    }

    #[test]
    fn the_oldest_is_rewritten_beyond_the_bound() {
        let mut segments = Segments::default();
        segments.made(1, 100, None);
        segments.add(at(1, 10));
        segments.made(2, 100, None);
        assert_eq!(segments.to_rewrite(2, 100), None, "200 octets, and 240 are allowed before two more are made");
        segments.made(3, 100, None);
        assert_eq!(segments.to_rewrite(3, 100), Some(1));
        assert_eq!(segments.to_rewrite(1, 100), None, "in use");
        assert_eq!(segments.to_rewrite(3, 200), None, "larger segments, larger slack");
        segments.add(at(3, 20));
        assert_eq!(segments.to_rewrite(3, 100), None, "300 octets, and 320 are allowed");
        // Its messages are elsewhere: it goes, and there is room again.
        segments.remove(at(3, 20));
        segments.remove(at(1, 10));
        segments.add(at(3, 10));
        segments.note_settles(3, 1);
        assert!(segments.removable(3).is_some());
        assert_eq!(segments.to_rewrite(3, 100), Some(2), "the next in age, while it is being removed");
        segments.gone(1);
        assert_eq!(segments.to_rewrite(3, 100), None);
    }
}
