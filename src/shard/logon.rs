//! Judging who a client says it is: NTLM's proofs here, passwords on threads of their own.
//!
//! A password's hash costs tens of milliseconds by design, which no shard has. On failure, when too
//! many wait or nobody answers in time, the client is told to come back (RFC 4954 section 6).

use super::net::{Ready, RemoteNudge};
use super::stream::Stream;
use super::{Context, Stage};
use crate::limits::{LOGON_WAIT_MS, LOGONS_WAITING_MAX};
use crate::smtp::sasl::{Mechanisms, Password};
use crate::smtp::server::Logon;
use crate::users::{User, Users};
use crossbeam_queue::ArrayQueue;
use futures_channel::oneshot;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// A password that waits for a thread to look at it.
#[derive(Debug)]
pub struct PasswordCheck {
    users: Arc<Users>,
    password: Password,
    answer: oneshot::Sender<Option<Arc<User>>>,
    nudge: RemoteNudge,
}

impl PasswordCheck {
    /// Computes the hash, and tells the session that waits. A panic ends this logon only.
    pub fn run(self) {
        let PasswordCheck { users, password, answer, nudge } = self;
        if answer.is_canceled() {
            // Nobody waits any more.
            return;
        }
        let verify = || users.verify_password(&password.name, password.password.as_bytes());
        if let Ok(user) = catch_unwind(AssertUnwindSafe(verify)) {
            // The session may be gone.
            let _ = answer.send(user);
        }
        nudge.nudge();
    }
}

/// Passwords on their way from the shards to the threads that look at them. The threads are of low
/// priority, so no shard may ever wait for one: there is no lock, and only the threads block.
#[derive(Debug)]
pub struct PasswordChecks {
    checks: ArrayQueue<PasswordCheck>,
    /// A semaphore: as many as there are checks.
    count: OwnedFd,
}

impl PasswordChecks {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        let count = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
        Ok(PasswordChecks { checks: ArrayQueue::new(LOGONS_WAITING_MAX), count })
    }

    fn push(&self, check: PasswordCheck) -> Result<(), Unavailable> {
        self.checks.push(check).map_err(|_| Unavailable)?;
        // Blocks at 2^64 only.
        write(&self.count, &1_u64.to_ne_bytes()).map_err(|_| Unavailable)?;
        Ok(())
    }

    /// Waits for the next; `None`: look again.
    pub fn next(&self) -> Option<PasswordCheck> {
        read(&self.count, &mut [0; 8]).ok()?;
        self.checks.pop()
    }
}

/// Nobody can judge now.
#[derive(Debug)]
pub struct Unavailable;

/// The mechanisms that some of these users can be verified by.
pub fn mechanisms(users: &Users) -> Mechanisms {
    let (ntlm, password) = (users.has_nt_hash(), users.has_password());
    Mechanisms { ntlm, login: password, plain: password }
}

/// The user who has made this proof.
pub async fn judge(context: &Context, stream: &Stream, logon: Logon) -> Result<Option<Arc<User>>, Unavailable> {
    let Some(users) = context.shared.users() else { return Ok(None) };
    match logon {
        Logon::Malformed(_) => Ok(None),
        Logon::Ntlm(logon) => Ok(users.verify_nt_hash(logon.name(), |hash| logon.verify(hash))),
        Logon::Password(_, password) => verify_password(context, stream, users, password).await,
    }
}

async fn verify_password(
    context: &Context,
    stream: &Stream,
    users: Arc<Users>,
    password: Password,
) -> Result<Option<Arc<User>>, Unavailable> {
    let (answer, mut verdict) = oneshot::channel();
    let check = PasswordCheck { users, password, answer, nudge: stream.nudge().remote() };
    context.logons.push(check)?;
    stream.set_deadline(Some(context.net.now() + Duration::from_millis(LOGON_WAIT_MS)));
    loop {
        match verdict.try_recv() {
            Ok(Some(user)) => return Ok(user),
            Ok(None) => {}
            Err(oneshot::Canceled) => return Err(Unavailable),
        }
        // The bell may have rung for it before this wait began.
        if context.shared.stage() == Stage::Ending || stream.interrupted().await == Ready::Deadline {
            return Err(Unavailable);
        }
    }
}
