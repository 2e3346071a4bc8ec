//! A message's content as it arrives: by DATA, in chunks (RFC 3030), and its end.

use super::content::Keep;
use super::{Chunk, Complete, Input, Session, State, Step};
use crate::smtp::command::Verb;
use crate::smtp::data::Piece;
use crate::smtp::reply;

impl Session {
    /// A piece of DATA.
    pub(super) fn handle_piece<'b>(&mut self, piece: Piece<'b>) -> Option<Step<'b>> {
        let State::Data(_, content) = &mut self.state else { return None };
        match piece {
            Piece::NeedMore => Some(Step::NeedMore),
            Piece::Content(octets) => {
                let size = content.decoder.octets();
                let keep = content.add(octets, size, &self.profile);
                self.keep(keep, octets)
            }
            Piece::End => self.end_of_message(),
        }
    }

    /// A piece of a chunk.
    pub(super) fn handle_chunk_piece<'b>(&mut self, octets: &'b [u8], refused: bool) -> Option<Step<'b>> {
        let State::Chunks(_, content) = &mut self.state else { return None };
        if refused {
            return None;
        }
        let size = content.octets().saturating_add(octets.len() as u64);
        let keep = content.add(octets, size, &self.profile);
        self.keep(keep, octets)
    }

    fn keep<'b>(&mut self, keep: Keep, octets: &'b [u8]) -> Option<Step<'b>> {
        self.abandon |= keep == Keep::NoMore;
        (keep == Keep::Yes && !octets.is_empty()).then_some(Step::Body(octets))
    }

    /// The reply to a chunk.
    ///
    //= RFC 3030 section 2: each BDAT has one reply, after its octets.
    pub(super) fn end_of_chunk<'b>(&mut self, chunk: Chunk) -> Option<Step<'b>> {
        self.input = Input::Lines;
        let refusal = chunk.refusal.or_else(|| match &self.state {
            State::Chunks(_, content) if !chunk.is_last => content.refusal(&self.profile),
            _ => None,
        });
        match refusal {
            None if chunk.is_last => self.end_of_message(),
            None => {
                reply::chunk_received(&mut self.replies, chunk.octets);
                self.observe_reply(250);
                None
            }
            Some(refusal) => {
                self.reply(refusal);
                // Where CHUNKING is switched off, it leaves no trace.
                if self.profile.extensions.chunking {
                    self.fail_chunk(chunk.is_last);
                }
                None
            }
        }
    }

    /// A refused chunk fails the transaction, if one is open: until it is given up, or the client
    /// has sent the last chunk of the message.
    fn fail_chunk(&mut self, is_last: bool) {
        self.state = match self.take_state() {
            State::Mail(envelope)
            | State::Recipients(envelope)
            | State::Chunks(envelope, _)
            | State::ChunkFailed(envelope) => {
                self.abandon = true;
                State::ChunkFailed(envelope)
            }
            state => state,
        };
        if is_last && matches!(self.state, State::ChunkFailed(_)) {
            self.end_transaction();
        }
    }

    /// The message is complete, by its final dot or its last chunk: the order of CONFORMANCE C.
    fn end_of_message<'b>(&mut self) -> Option<Step<'b>> {
        let (State::Data(_, content) | State::Chunks(_, content)) = &mut self.state else { return None };
        if let Some(refusal) = content.refusal_at_end(&self.profile) {
            self.begin_command(Verb::Data);
            self.abandon = true;
            self.reply(refusal);
            self.end_transaction();
            return None;
        }
        let complete = Complete { missing: content.missing_fields().unwrap_or_default(), octets: content.octets() };
        if let State::Data(envelope, _) | State::Chunks(envelope, _) = self.take_state() {
            self.state = State::Committing(envelope, complete);
        }
        Some(Step::Commit)
    }
}
