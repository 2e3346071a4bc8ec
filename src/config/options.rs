//! The table of options: `--help` is generated from it.

use super::units;
use crate::limits;
use crate::log::{Format, Level};
use crate::policy::parse_range;
use crate::users::{BindingPattern, SenderPattern, UserName};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Gatepost, a mail edge gateway.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "A mail edge gateway: accepts SMTP at high rate, enforces limits, spools every message durably."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway in the foreground until SIGTERM or SIGINT.
    Serve(Box<ServeOptions>),
    /// Check a configuration and what it needs, and change nothing; also beside a running gateway.
    ///
    /// Takes what serve takes, and opens what serve would open: files, certificates, spool, ports, limits of the system. Whatever would keep serve from starting is told on standard error, each with its remedy, and the exit code is the one that serve would end with. Standard output has the effective configuration as a file for --config, each line with its origin. Run it as the user that the gateway runs as.
    Check(Box<ServeOptions>),
    /// Look into the queue.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Make a shard of a running gateway fail.
    #[cfg(feature = "fault-injection")]
    #[command(subcommand)]
    Fault(FaultCommand),
    /// Refuse clients for some time, on the gateway bindings of a running gateway.
    ///
    /// The list is kept in memory: a restart forgets it. --block and --block-file of serve are for good.
    #[command(subcommand)]
    Block(BlockCommand),
    /// Have a running gateway load its configuration again, all of it or nothing; as SIGHUP does, and say what was changed.
    ///
    /// Connections from then on begin under the new configuration; sessions that are open go on under theirs.
    Reload(GatewayOption),
    /// Say who may log in: the users file of serve --users. A running gateway loads it again by itself.
    #[command(subcommand)]
    User(UserCommand),
}

/// `gatepost user ...`
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user, or give one a new password and new settings.
    ///
    /// The password is the first line of standard input; on a terminal it is asked for.
    Add {
        /// Which file; made where there is none.
        #[command(flatten)]
        users: UsersOption,
        /// Whom.
        #[command(flatten)]
        user: NewUser,
    },
    /// List the users: name, mechanisms, senders, bindings.
    List {
        /// Which file.
        #[command(flatten)]
        users: UsersOption,
        /// One JSON object a line: name, mechanisms, senders, bindings.
        #[arg(long)]
        json: bool,
    },
    /// Remove a user. Sessions that have logged in go on.
    Remove {
        /// Which file.
        #[command(flatten)]
        users: UsersOption,
        /// The user's name; case does not count.
        name: UserName,
    },
}

/// Which users file.
#[derive(Debug, Args)]
pub struct UsersOption {
    /// The users file; its owner's alone (mode 0600).
    #[arg(long, value_name = "FILE")]
    pub users: PathBuf,
}

/// A user to be added.
#[derive(Debug, Args)]
pub struct NewUser {
    /// Let the user log in by NTLM too. The file then holds what is as good as the password to who can read it.
    #[arg(long)]
    pub ntlm: bool,
    /// A sender the user may give: a mailbox, a domain, `.example.org` for its subdomains, or `<>`; repeatable. [default: any]
    #[arg(long, value_name = "PATTERN")]
    pub sender: Vec<SenderPattern>,
    /// A binding the user may log in on; repeatable. [default: all]
    #[arg(long, value_name = "PORT|ADDR:PORT")]
    pub binding: Vec<BindingPattern>,
    /// The user's name; case does not count.
    pub name: UserName,
}

/// `gatepost block ...`
#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Block an address or a range from now on; sessions that are open go on. One that is blocked gets the new time.
    Add {
        /// An address, or an address and a prefix length.
        #[arg(value_name = "CIDR", value_parser = parse_range)]
        range: IpNet,
        /// For how long. ms, s, m, h, d.
        #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = block_duration)]
        duration: Duration,
        /// Which gateway.
        #[command(flatten)]
        gateway: GatewayOption,
    },
    /// List what is blocked, and for how much longer.
    List {
        /// One JSON object a line: cidr, seconds_left.
        #[arg(long)]
        json: bool,
        /// Which gateway.
        #[command(flatten)]
        gateway: GatewayOption,
    },
    /// Block a range no longer; as it was added.
    Remove {
        /// An address, or an address and a prefix length.
        #[arg(value_name = "CIDR", value_parser = parse_range)]
        range: IpNet,
        /// Which gateway.
        #[command(flatten)]
        gateway: GatewayOption,
    },
}

/// Which running gateway to talk to.
#[derive(Debug, Args)]
pub struct GatewayOption {
    /// The spool directory of the running gateway; its admin socket is DIR/admin.sock.
    #[arg(long, value_name = "DIR", default_value = "./gatepost-spool")]
    pub spool: PathBuf,
    /// The admin socket, where serve was given another.
    #[arg(long, value_name = "PATH", conflicts_with = "spool")]
    pub admin_socket: Option<PathBuf>,
}

impl GatewayOption {
    /// Where the gateway's admin socket is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| self.spool.join(ADMIN_SOCKET))
    }
}

/// The admin socket's name in a spool.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// `gatepost fault ...`
#[cfg(feature = "fault-injection")]
#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// Let a shard stand still.
    Stall {
        /// Its number, from 0.
        shard: usize,
        /// For how long. ms, s, m, h, d.
        #[arg(long = "for", value_name = "DURATION", default_value = "5s", value_parser = units::duration)]
        duration: Duration,
        /// Which gateway.
        #[command(flatten)]
        gateway: GatewayOption,
    },
    /// Let a shard panic.
    Kill {
        /// Its number, from 0.
        shard: usize,
        /// Which gateway.
        #[command(flatten)]
        gateway: GatewayOption,
    },
}

/// `gatepost queue ...`
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// List the queued messages: id, arrival, octets, reverse-path, recipients.
    List {
        /// Which spool.
        #[command(flatten)]
        spool: SpoolOption,
        /// One JSON object a line: id, arrived, octets, from, to, body, client, helo.
        #[arg(long)]
        json: bool,
    },
    /// Print a message as it was stored: one Received field, then what the client sent.
    Cat {
        /// Which spool.
        #[command(flatten)]
        spool: SpoolOption,
        /// The queue id, as in the 250 reply; repeatable.
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Print every queued message, each ended by a NUL octet.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
}

/// Which spool to read.
#[derive(Debug, Args)]
pub struct SpoolOption {
    /// The spool directory; it may be in use.
    #[arg(long, value_name = "DIR", default_value = "./gatepost-spool")]
    pub spool: PathBuf,
}

/// `gatepost serve ...`, and `gatepost check ...`. Every one of them takes a value, and can be given by
/// environment and file too (`config::table`).
#[derive(Debug, Args)]
#[command(mut_args = super::table::show_variable)]
pub struct ServeOptions {
    /// A file of these options in TOML: their long names, as in `max-connections = 100`. A flag counts more than a variable, a variable more than the file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address and port to accept SMTP on, IPv4 or IPv6 in brackets (`[::]:PORT` takes both), or `none`; repeatable. Attributes: role=gateway|relay (timers, rates, block lists), tls=off|optional|required|implicit (optional if there is a certificate: STARTTLS; implicit: TLS from the first octet), auth=off|optional|required (required on port 587, else optional if there are users), plaintext-auth (passwords without TLS), allow=CIDR+CIDR.. (only these clients), proxy=CIDR+CIDR.. (these are proxies: they must begin with a header of the PROXY protocol, version 1 or 2).
    #[arg(long, value_name = "ADDR:PORT[,ATTRIBUTE..]|none", default_value = "127.0.0.1:2525")]
    pub listen: Vec<String>,
    /// This server's fully qualified domain name, for the banner and Received fields. [default: the machine's]
    #[arg(long, value_name = "FQDN")]
    pub hostname: Option<String>,
    /// Another name of this server in Received fields, for --max-local-hops; repeatable.
    #[arg(long, value_name = "NAME")]
    pub local_name: Vec<String>,
    /// How many shards, each pinned to a core. [default: the cores this process may use]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// A domain to accept mail for; `.example.org` stands for all its subdomains; repeatable.
    #[arg(long, value_name = "DOMAIN")]
    pub accept_domain: Vec<String>,
    /// A file of such domains, one a line; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub accept_domains_file: Option<PathBuf>,
    /// Addresses whose clients may send to any domain; repeatable.
    #[arg(long, value_name = "CIDR")]
    pub relay_from: Vec<String>,
    /// Completes addresses without a domain; without it they are refused.
    #[arg(long, value_name = "DOMAIN")]
    pub default_domain: Option<String>,
    /// The file of who may log in, its owner's alone (mode 0600); `gatepost user` writes it. Loaded again when it changes, and at a reload.
    #[arg(long, value_name = "FILE")]
    pub users: Option<PathBuf>,
    /// Addresses whose clients are refused on gateway bindings; repeatable.
    #[arg(long, value_name = "CIDR")]
    pub block: Vec<String>,
    /// A file of such addresses, one a line; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub block_file: Option<PathBuf>,
    /// The zone of a DNS block list: a client on it reaches nobody but Postmaster on gateway bindings, unless it has authenticated or is named by --relay-from; repeatable.
    #[arg(long, value_name = "ZONE")]
    pub dnsbl: Vec<String>,
    /// A name server to ask about --dnsbl; repeatable. [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDR:PORT")]
    pub resolver: Vec<SocketAddr>,
    /// Most inbound connections of the whole process; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS_MAX_DEFAULT)]
    pub max_connections: u32,
    /// Most connections from one address; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS_PER_SOURCE_MAX_DEFAULT)]
    pub max_connections_per_source: u32,
    /// Most messages a minute from one address; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::MESSAGE_RATE_DEFAULT_PER_MINUTE)]
    pub message_rate: u32,
    /// Most messages a minute from one authenticated user of a relay binding; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::RELAY_MESSAGE_RATE_DEFAULT_PER_MINUTE)]
    pub relay_message_rate: u32,
    /// Length of the IPv6 prefix that counts as one address.
    #[arg(long, value_name = "BITS", default_value_t = limits::IPV6_PREFIX_DEFAULT, value_parser = clap::value_parser!(u8).range(0..=128))]
    pub ipv6_prefix: u8,
    /// Slots of the tables that count per address, a power of two.
    #[arg(long, value_name = "N", default_value_t = limits::TABLE_SLOTS_DEFAULT)]
    pub table_slots: u32,
    /// Largest message; 0 is unlimited. B, KB, MB, GB, TB.
    #[arg(long, value_name = "SIZE", default_value = "10MB", value_parser = units::size)]
    pub max_message_size: u64,
    /// Largest header of a message; 0 is unlimited.
    #[arg(long, value_name = "SIZE", default_value = "64KB", value_parser = units::size)]
    pub max_header_size: u64,
    /// Most Received fields of an arriving message; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::HOPS_MAX_DEFAULT)]
    pub max_hops: u32,
    /// Most times an arriving message may have been here before; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::LOCAL_HOPS_MAX_DEFAULT)]
    pub max_local_hops: u32,
    /// Most recipients of a message; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::RECIPIENTS_MAX_DEFAULT)]
    pub max_recipients: u32,
    /// Most protocol errors of a session; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::PROTOCOL_ERRORS_MAX_DEFAULT)]
    pub max_protocol_errors: u32,
    /// Most failed logons of a session; 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::LOGON_FAILURES_MAX_DEFAULT)]
    pub max_logon_failures: u32,
    /// Most failed logons a minute from one address, over all its connections; then AUTH is refused for a while (454). 0 is unlimited.
    #[arg(long, value_name = "N", default_value_t = limits::LOGON_FAILURE_RATE_DEFAULT_PER_MINUTE)]
    pub logon_failure_rate: u32,
    /// Longest session on a gateway binding; 0 is unlimited. ms, s, m, h, d.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    pub connection_timeout: Duration,
    /// Longest silence of a client on a gateway binding; 0 is unlimited.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = units::duration)]
    pub inactivity_timeout: Duration,
    /// Longest session on a relay binding; 0 is unlimited.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = units::duration)]
    pub relay_connection_timeout: Duration,
    /// Longest silence of a client on a relay binding; 0 is unlimited.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    pub relay_inactivity_timeout: Duration,
    /// How late refusals (5yz) are given to unauthenticated clients; 0 is at once.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = units::duration)]
    pub tarpit: Duration,
    /// An SMTP extension not to offer: PIPELINING, 8BITMIME, BINARYMIME, CHUNKING, STARTTLS or AUTH; repeatable.
    #[arg(long, value_name = "NAME")]
    pub disable_extension: Vec<String>,
    /// A certificate in PEM, with its chain behind it; repeatable, chosen by the name that a client asks for (SNI). The first is for all other names. Read again when it changes, and at a reload.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Vec<PathBuf>,
    /// The private key of the certificate at the same place, in PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Vec<PathBuf>,
    /// The revision of [MS-OXSMTP] that decides where they differ: 4.0 or 13.0.
    #[arg(long, value_name = "4.0|13.0", default_value = "13.0")]
    pub oxsmtp_revision: String,
    /// Free space on the spool's disk below which mail is refused; 0 is none.
    #[arg(long, value_name = "SIZE", default_value = "500MB", value_parser = units::size)]
    pub min_free_disk: u64,
    /// Free memory below which mail is refused; 0 is none.
    #[arg(long, value_name = "SIZE", default_value = "100MB", value_parser = units::size)]
    pub min_free_memory: u64,
    /// How long an acknowledgement waits for the next hop to take the message; 0 is not at all. Needs a next hop.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = units::duration)]
    pub ack_delay: Duration,
    /// Where accepted mail goes: an IPv4 address, an IPv6 one in brackets, or a name; repeatable, tried in this order. Without it mail is held. Attributes: tls=off|optional|required (optional: STARTTLS where offered, nothing verified; required: a verified certificate, or nothing is sent), with tls=required also ca=FILE (PEM; whom to trust instead of the system's) and tls-name=NAME (that the certificate is for, HOST unless given); auth-file=FILE (NAME:PASSWORD for AUTH PLAIN, LOGIN or NTLM, mode 0600).
    #[arg(long, value_name = "HOST:PORT[,ATTRIBUTE..]")]
    pub next_hop: Vec<String>,
    /// Where a domain's mail goes; `.example.org` stands for all subdomains, `*` for every other domain, like --next-hop; repeatable, one domain's in order.
    #[arg(long, value_name = "DOMAIN=HOST:PORT[,ATTRIBUTE..]")]
    pub route: Vec<String>,
    /// How long a next hop may keep silent at a command.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    pub next_hop_timeout: Duration,
    /// How long until a failed delivery is tried again; doubled each time.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = units::duration)]
    pub retry_min: Duration,
    /// Longest time until a failed delivery is tried again.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = units::duration)]
    pub retry_max: Duration,
    /// How long delivery of a message is tried.
    #[arg(long, value_name = "DURATION", default_value = "2d", value_parser = units::duration)]
    pub queue_lifetime: Duration,
    /// The spool directory.
    #[arg(long, value_name = "DIR", default_value = "./gatepost-spool")]
    pub spool: PathBuf,
    /// How long transactions may go on after SIGTERM.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = units::duration)]
    pub drain_timeout: Duration,
    /// Address and port of the Prometheus endpoint, or `none`.
    #[arg(long, value_name = "ADDR:PORT|none", default_value = "127.0.0.1:9125", value_parser = optional_address)]
    pub metrics_listen: OptionalAddress,
    /// The Unix socket on which `gatepost block` and others talk to this gateway, or `none`. [default: SPOOL/admin.sock]
    #[arg(long, value_name = "PATH|none")]
    pub admin_socket: Option<PathBuf>,
    /// How the log is written: text (field=value), or an object of JSON on each line.
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub log_format: Format,
    /// What is logged: off, error, warn, info or debug, each with what stands before it.
    #[arg(long, value_name = "LEVEL", default_value = "info", hide_possible_values = true)]
    pub log_level: Level,
    /// The file that the log is appended to; opened again on SIGHUP, and when it was renamed. [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// An address, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionalAddress(pub Option<SocketAddr>);

fn optional_address(text: &str) -> Result<OptionalAddress, String> {
    if text == "none" {
        return Ok(OptionalAddress(None));
    }
    text.parse()
        .map(|address| OptionalAddress(Some(address)))
        .map_err(|_| "expected ADDR:PORT, as in 127.0.0.1:9125, or none".to_owned())
}

fn block_duration(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if duration.is_zero() {
        return Err("that is not at all; gatepost block remove ends a block".to_owned());
    }
    if duration > limits::BLOCK_LONGEST {
        let longest = units::show(limits::BLOCK_LONGEST);
        return Err(format!("longer than {longest}; serve --block is for good"));
    }
    Ok(duration)
}
