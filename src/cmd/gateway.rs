//! Asking a running gateway: one question, one answer, over its admin socket.

use crate::config::options::GatewayOption;
use crate::control::admin::Place;
use crate::control::admin::wire::{Answer, Request};
use crate::control::preflight::{ExitCode, Failure};
use crate::limits::{ADMIN_ANSWER_MAX_OCTETS, ADMIN_ANSWER_MS};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Asks, and returns an answer that is no failure.
pub fn ask(gateway: &GatewayOption, request: &Request) -> Result<Answer, Failure> {
    let path = gateway.path();
    let failed = |error: io::Error| failure(&path, &error);
    let patience = Some(Duration::from_millis(ADMIN_ANSWER_MS));
    let place = Place::open(&path).map_err(failed)?;
    let mut socket = place.connect(patience).map_err(failed)?;
    socket.set_read_timeout(patience).map_err(failed)?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    socket.write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    socket.take(ADMIN_ANSWER_MAX_OCTETS as u64).read_to_end(&mut answer).map_err(failed)?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Failed { code, message }) => Err(Failure::new(code, message)),
        Ok(answer) => Ok(answer),
        Err(_) if answer.is_empty() => {
            let message = format!("{}: the gateway ended before it answered", path.display());
            Err(Failure::new(ExitCode::TempFail, message))
        }
        Err(error) => Err(unexpected(&path, &error.to_string())),
    }
}

/// An answer to another question than was asked.
pub fn unexpected(path: &Path, what: &str) -> Failure {
    let message = format!(
        "{}: what answers there is no gateway of this version ({what}); use the program that runs there",
        path.display()
    );
    Failure::new(ExitCode::Software, message)
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            let message = format!(
                "no gateway listens at {path} ({error}): is gatepost running on this spool? give its --spool, or its --admin-socket"
            );
            Failure::new(ExitCode::Unavailable, message)
        }
        io::ErrorKind::PermissionDenied => {
            let message = format!("{path}: {error}; run this as the user that the gateway runs as, or as root");
            Failure::new(ExitCode::NoPermission, message)
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let message = format!(
                "{path}: no answer in {} seconds; the gateway may have done it all the same",
                ADMIN_ANSWER_MS / 1000
            );
            Failure::new(ExitCode::TempFail, message)
        }
        io::ErrorKind::InvalidInput => {
            Failure::new(ExitCode::Usage, format!("{path}: {error}; give the gateway's --spool or --admin-socket"))
        }
        _ => Failure::new(ExitCode::IoError, format!("{path}: {error}")),
    }
}
