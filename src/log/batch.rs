//! Lines that are written together, and what is left of them when they cannot be.

use memchr::{memchr, memchr_iter};

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    octets: Vec<u8>,
    /// Octets at the head that complete a line whose beginning is written.
    cut: usize,
}

impl Batch {
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    pub(super) fn push(&mut self, lines: &[u8]) {
        self.octets.extend_from_slice(lines);
    }

    /// All of it was written.
    pub(super) fn clear(&mut self) {
        self.octets.clear();
        self.cut = 0;
    }

    /// Only so many octets were written. The rest of a line that was cut is kept, so that it may be
    /// completed before anything else is written; how many lines are thrown away.
    pub(super) fn fail(&mut self, written: usize) -> u64 {
        let (done, rest) = self.octets.split_at_checked(written).unwrap_or((&self.octets, &[]));
        let kept = match self.cut.checked_sub(written) {
            Some(cut) if cut > 0 => cut,
            _ if written == 0 || done.ends_with(b"\n") => 0,
            _ => memchr(b'\n', rest).map_or(rest.len(), |end| end + 1),
        };
        let lost = memchr_iter(b'\n', rest.get(kept..).unwrap_or_default()).count() as u64;
        self.octets.drain(..done.len());
        self.octets.truncate(kept);
        self.cut = kept;
        lost
    }

    /// The line that was cut cannot be completed any more: whether there was one.
    pub(super) fn give_up(&mut self) -> bool {
        let was_cut = self.cut > 0;
        self.octets.drain(..self.cut);
        self.cut = 0;
        was_cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lines: &str) -> Batch {
        let mut batch = Batch::default();
        batch.push(lines.as_bytes());
        batch
    }

    #[test]
    fn what_is_left() {
        for (written, lost, kept) in [
            (0, 3, ""),
            (1, 2, "ne\n"),
            (3, 2, "\n"),
            (4, 2, ""),
            (5, 1, "wo\n"),
            (8, 1, ""),
            (13, 0, "\n"),
            (14, 0, ""),
        ] {
            let mut batch = batch("one\ntwo\nthree\n");
            assert_eq!(batch.fail(written), lost, "{written}");
            assert_eq!(batch.octets(), kept.as_bytes(), "{written}");
            assert_eq!(batch.give_up(), !kept.is_empty());
            assert_eq!(batch.octets(), b"");
        }
    }

    #[test]
    fn a_cut_line_is_completed_first() {
        let mut batch = batch("one\ntwo\n");
        assert_eq!(batch.fail(1), 1);
        batch.push(b"three\n");
        assert_eq!((batch.fail(0), batch.octets()), (1, b"ne\n".as_slice()));
        batch.push(b"four\n");
        assert_eq!((batch.fail(2), batch.octets()), (1, b"\n".as_slice()));
        batch.push(b"five\nsix\n");
        assert_eq!((batch.fail(2), batch.octets()), (1, b"ive\n".as_slice()));
        batch.clear();
        assert!(!batch.give_up());
    }
}
