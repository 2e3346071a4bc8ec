//! The content of one message on its way in, by DATA or by BDAT: verified, counted, and stored if asked for.

use super::books::Books;
use super::data::Decoder;
use super::dump::{Dump, Envelope};
use crate::message::verify::Verifier;

/// The content of the current transaction.
#[derive(Debug, Default)]
pub struct Content {
    decoder: Decoder,
    verifier: Verifier,
    dump: Option<Dump>,
    /// Octets of the message.
    octets: u64,
    /// Octets on the wire, with dots that were doubled.
    raw: u64,
    /// The octet on the wire at which something may go wrong.
    fault_at: Option<u64>,
}

impl Content {
    /// Begins a message.
    pub fn begin(&mut self, books: &mut Books) {
        self.dump = books.begin_dump();
        self.fault_at = books.faults().next_in_body(0);
    }

    /// Forgets the message. What was stored of it stays behind as partial.
    pub fn reset(&mut self) {
        self.decoder.reset();
        self.verifier.reset();
        self.dump = None;
        (self.octets, self.raw, self.fault_at) = (0, 0, None);
    }

    /// Octets of the message so far.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Takes what is dot-stuffed, up to the next place where something may go wrong. How much was taken, and whether
    /// that was the end.
    pub fn take_stuffed(&mut self, input: &[u8], books: &mut Books) -> (usize, bool) {
        let input = &input[..self.taken_at_once(input)];
        let Self { decoder, verifier, dump, octets, .. } = self;
        let (taken, ended) = decoder.feed(input, |piece| note(piece, verifier, dump.as_mut(), octets, books));
        self.raw += taken as u64;
        (taken, ended)
    }

    /// Takes content as it is, likewise.
    pub fn take(&mut self, input: &[u8], books: &mut Books) -> usize {
        let input = &input[..self.taken_at_once(input)];
        note(input, &mut self.verifier, self.dump.as_mut(), &mut self.octets, books);
        self.raw += input.len() as u64;
        input.len()
    }

    fn taken_at_once(&self, input: &[u8]) -> usize {
        let left = self.fault_at.map_or(u64::MAX, |at| at - self.raw);
        usize::try_from(left).map_or(input.len(), |left| left.min(input.len()))
    }

    /// The place that has just been reached, if something may go wrong there; told once.
    pub fn reached(&mut self, books: &Books) -> Option<u64> {
        let at = self.fault_at.filter(|at| *at == self.raw)?;
        self.fault_at = books.faults().next_in_body(at);
        Some(at)
    }

    /// Nothing more goes wrong in this message.
    pub fn spare(&mut self) {
        self.fault_at = None;
    }

    /// Ends the message: it is taken.
    pub fn finish(&mut self, envelope: &Envelope, books: &mut Books, owed: &mut Vec<u8>) {
        books.note(self.verifier.finish(), self.octets, envelope, owed);
        if let Some(dump) = self.dump.take() {
            books.note_fault(dump.finish(envelope));
        }
    }
}

fn note(piece: &[u8], verifier: &mut Verifier, dump: Option<&mut Dump>, octets: &mut u64, books: &mut Books) {
    *octets += piece.len() as u64;
    verifier.feed(piece);
    if let Some(dump) = dump {
        books.note_fault(dump.write(piece));
    }
}
