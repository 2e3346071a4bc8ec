//! A next hop that takes everything, but for recipients whose names ask for a refusal.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

/// A message that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub from: String,
    /// Those that were not refused.
    pub to: Vec<String>,
    pub content: Vec<u8>,
}

/// Takes mail for all but `no@` (refused for good) and `later@` (refused for now); gone when dropped.
#[derive(Debug)]
pub struct Sink {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    accepting: Option<(TcpListener, JoinHandle<()>)>,
}

impl Sink {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let taken = Arc::<Mutex<Vec<Taken>>>::default();
        let (socket, into) = (listener.try_clone().expect("a socket"), taken.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = socket.accept() {
                let into = into.clone();
                // It ends with its connection, in whatever way.
                thread::spawn(move || serve(stream, &into));
            }
        });
        Sink { address, taken, accepting: Some((listener, thread)) }
    }

    pub fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().expect("nobody panics with it")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let Some((listener, thread)) = self.accepting.take() else { return };
        // Wakes the thread that accepts.
        let _ = socket2::SockRef::from(&listener).shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

/// The path in a command, without brackets.
fn path(line: &str) -> String {
    let path = line.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>')).map(|(path, _)| path);
    path.unwrap_or_else(|| panic!("no path: {line}")).to_owned()
}

fn serve(stream: TcpStream, into: &Mutex<Vec<Taken>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let say = |reply: &str| (&stream).write_all(format!("{reply}\r\n").as_bytes());
    say("220 sink ready")?;
    let mut message = Taken { from: String::new(), to: Vec::new(), content: Vec::new() };
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reply = match line.get(..4).unwrap_or_default() {
            "MAIL" => {
                message = Taken { from: path(&line), to: Vec::new(), content: Vec::new() };
                "250 2.1.0 Ok"
            }
            "RCPT" => match path(&line) {
                to if to.starts_with("no@") => "550 5.1.1 No",
                to if to.starts_with("later@") => "450 4.2.1 Later",
                to => {
                    message.to.push(to);
                    "250 2.1.5 Ok"
                }
            },
            "DATA" if message.to.is_empty() => "554 5.5.1 No recipients",
            "DATA" => {
                say("354 Go ahead")?;
                message.content = read_data(&mut reader)?;
                into.lock().expect("nobody panics with it").push(message.clone());
                "250 2.0.0 Taken"
            }
            "QUIT" => return say("221 2.0.0 Bye"),
            _ => "250 2.0.0 Ok",
        };
        say(reply)?;
    }
}

/// Reads content to its final dot; what ends before it was not sent whole.
fn read_data(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let begin = content.len();
        if reader.read_until(b'\n', &mut content)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &content[begin..] {
            b".\r\n" => {
                content.truncate(begin);
                return Ok(content);
            }
            [b'.', ..] => _ = content.remove(begin),
            _ => {}
        }
    }
}
