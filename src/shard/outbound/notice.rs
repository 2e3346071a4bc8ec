//! A session that waits for the next hop before it acknowledges ([MS-OXSMTP]
//! AcknowledgementDelay).

use crate::shard::net::Nudge;
use std::cell::RefCell;

/// What the session is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The 250: the message is durable, and what becomes of it is the queue's business.
    Accept,
    /// This refusal of the next hop: the message is withdrawn from the queue.
    Refuse(String),
}

#[derive(Debug)]
enum State {
    /// Recipients are still to be answered; the refusal of the last one in the envelope so far.
    Waiting(Option<(u32, String)>),
    /// All were refused; the outcome that says so is on its way to the disk.
    Withdrawing(String),
    Done(Acknowledgement),
    /// The session has said 250 already.
    GivenUp,
}

/// Shared by the session that waits and the deliveries that decide.
#[derive(Debug)]
pub struct Notice {
    state: RefCell<State>,
    session: Nudge,
}

impl Notice {
    /// `session` is nudged when there is a verdict.
    pub fn new(session: Nudge) -> Self {
        Notice { state: RefCell::new(State::Waiting(None)), session }
    }

    /// The verdict, once there is one.
    pub fn verdict(&self) -> Option<Acknowledgement> {
        match &*self.state.borrow() {
            State::Done(verdict) => Some(verdict.clone()),
            _ => None,
        }
    }

    /// The session waits no longer and says 250. False: the message is being withdrawn, so it must
    /// wait for the verdict, which the disk owes.
    pub fn give_up(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let may = !matches!(*state, State::Withdrawing(_));
        if may {
            *state = State::GivenUp;
        }
        may
    }

    /// Whether the session still waits for recipients to be answered.
    pub fn is_waiting(&self) -> bool {
        matches!(*self.state.borrow(), State::Waiting(_))
    }

    /// A recipient was refused for good, with this line.
    pub fn refused(&self, place: u32, line: impl FnOnce() -> String) {
        if let State::Waiting(last) = &mut *self.state.borrow_mut()
            && last.as_ref().is_none_or(|(before, _)| *before <= place)
        {
            *last = Some((place, line()));
        }
    }

    /// All recipients were refused. False: nobody waits for that any more.
    pub fn withdraw(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if let State::Waiting(Some((_, line))) = &mut *state {
            *state = State::Withdrawing(std::mem::take(line));
            return true;
        }
        false
    }

    /// The withdrawal is on stable storage, or may be: its write failed.
    pub fn withdrawn(&self) {
        let line = match &mut *self.state.borrow_mut() {
            State::Withdrawing(line) => std::mem::take(line),
            _ => return,
        };
        self.done(Acknowledgement::Refuse(line));
    }

    /// Ends the wait with a 250.
    pub fn accept(&self) {
        if self.is_waiting() {
            self.done(Acknowledgement::Accept);
        }
    }

    fn done(&self, verdict: Acknowledgement) {
        self.state.replace(State::Done(verdict));
        self.session.nudge();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Doorbell;
    use crate::shard::net::{Alarm, Net};

    fn notice() -> (Alarm, Notice) {
        let alarm = Alarm::new(&Net::new(Doorbell::new().expect("an eventfd")).expect("an epoll"));
        let notice = Notice::new(alarm.nudge());
        (alarm, notice)
    }

    #[test]
    fn a_withdrawal_is_decided_before_the_disk_has_it() {
        let (_alarm, notice) = notice();
        notice.refused(1, || "550 5.1.1 second".to_owned());
        notice.refused(0, || "550 5.1.1 first".to_owned());
        assert!(notice.withdraw() && !notice.is_waiting());
        assert!(!notice.give_up(), "the message may be withdrawn on the disk: no 250 any more");
        notice.accept();
        assert_eq!(notice.verdict(), None);
        notice.withdrawn();
        assert_eq!(notice.verdict(), Some(Acknowledgement::Refuse("550 5.1.1 second".to_owned())));
    }

    #[test]
    fn a_session_that_has_answered_hears_nothing() {
        let (_alarm, notice) = notice();
        notice.refused(0, || "550 5.1.1 no".to_owned());
        assert!(notice.give_up() && !notice.withdraw());
        notice.accept();
        notice.withdrawn();
        assert_eq!(notice.verdict(), None);
    }
}
