//! Judging who a client says it is: NTLM's proofs here, passwords on threads of their own.
//!
//! A password's hash costs tens of milliseconds by design, which no shard has. On failure, when too
//! many wait or nobody answers in time, the client is told to come back (RFC 4954 section 6).

use super::net::{Ready, RemoteNudge};
use super::stream::Stream;
use super::{Context, Stage};
use crate::limits::LOGON_WAIT_MS;
use crate::smtp::sasl::{Mechanisms, Password};
use crate::smtp::server::Logon;
use crate::users::{User, Users};
use futures_channel::oneshot;
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
    /// Computes the hash, and tells the session that waits.
    pub fn run(self) {
        let user = self.users.verify_password(&self.password.name, self.password.password.as_bytes());
        // The session may be gone.
        let _ = self.answer.send(user);
        self.nudge.nudge();
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
    context.logons.try_send(check).map_err(|_| Unavailable)?;
    stream.set_deadline(Some(context.net.now() + Duration::from_millis(LOGON_WAIT_MS)));
    loop {
        match verdict.try_recv() {
            Ok(Some(user)) => return Ok(user),
            Ok(None) => {}
            Err(oneshot::Canceled) => return Err(Unavailable),
        }
        match stream.interrupted().await {
            Ready::Deadline => return Err(Unavailable),
            Ready::Bell if context.shared.stage() == Stage::Ending => return Err(Unavailable),
            Ready::Bell | Ready::Socket => {}
        }
    }
}
