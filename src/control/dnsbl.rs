//! Clients looked up in DNS block lists (E15), as the shards ask for it.
//!
//! All zones are asked at once, and the first that has the client decides. Answers are remembered as
//! long as they allow. On failure: a zone that does not answer, or answers with an error, says nothing
//! of the client; without a resolver (the system's configuration cannot be read) none of them does.
//!
//! The resolver is made when it is first needed: without `--dnsbl` there is none.

use crate::limits::{DNSBL_CACHE_ANSWERS, DNSBL_LOOKUPS_MAX, DNSBL_QUESTIONS_MAX, DNSBL_TRY_MS, DNSBL_WAIT_MS};
use crate::policy::{Listing, judge_answer};
use crate::shard::{Lookup, Lookups};
use crate::stderr;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Answers the shards as long as the process lives. `servers` are asked; without any, the system's.
pub async fn serve(lookups: Arc<Lookups>, servers: Vec<SocketAddr>) {
    let bell = match lookups.bell().and_then(UnixStream::from_std) {
        Ok(bell) => bell,
        Err(error) => return stderr::say(format_args!("DNS block lists: {error}; none is asked")),
    };
    let mut source = Source { servers, resolver: None, has_failed: false };
    let questions = Arc::new(Semaphore::new(DNSBL_QUESTIONS_MAX));
    let mut running = JoinSet::new();
    loop {
        // Who has waited in vain is not looked up: that would be late for those behind, too.
        while running.len() < DNSBL_LOOKUPS_MAX
            && let Some(lookup) = lookups.next()
        {
            match source.resolver() {
                _ if lookup.is_given_up() => {}
                Some(resolver) => drop(running.spawn(look_up(resolver, questions.clone(), lookup))),
                None => lookup.answer(Listing::Failed),
            }
        }
        tokio::select! {
            Some(_) = running.join_next() => {}
            rung = rung(&bell) => {
                if let Err(error) = rung {
                    return stderr::say(format_args!("DNS block lists: {error}; none is asked any more"));
                }
            }
        }
    }
}

/// Waits until some were added.
async fn rung(bell: &UnixStream) -> io::Result<()> {
    bell.readable().await?;
    match bell.try_read(&mut [0; 256]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        read => read.map(drop),
    }
}

/// Where the resolver comes from.
struct Source {
    servers: Vec<SocketAddr>,
    resolver: Option<TokioResolver>,
    /// The operator was told that there is none.
    has_failed: bool,
}

impl Source {
    /// The resolver, made anew as long as that fails.
    fn resolver(&mut self) -> Option<TokioResolver> {
        if self.resolver.is_none() {
            let made = make_resolver(&self.servers);
            if let Err(error) = &made
                && !std::mem::replace(&mut self.has_failed, true)
            {
                stderr::say(format_args!(
                    "DNS block lists are not asked: {error}; mend /etc/resolv.conf, or give --resolver"
                ));
            }
            self.resolver = made.ok();
        }
        self.resolver.clone()
    }
}

fn make_resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(name_server).collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = Duration::from_millis(DNSBL_TRY_MS);
    options.attempts = 1;
    options.cache_size = DNSBL_CACHE_ANSWERS;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections.iter_mut().for_each(|connection| connection.port = address.port());
    server
}

async fn look_up(resolver: TokioResolver, questions: Arc<Semaphore>, lookup: Lookup) {
    let mut asked = JoinSet::new();
    for zone in lookup.zones.iter() {
        asked.spawn(ask(resolver.clone(), questions.clone(), zone.name_of(lookup.client)));
    }
    let listing = timeout(Duration::from_millis(DNSBL_WAIT_MS), gather(&mut asked)).await;
    lookup.answer(listing.unwrap_or(Listing::Failed));
}

/// The first answer that says "listed"; else, when all are there, whether one failed.
async fn gather(asked: &mut JoinSet<Listing>) -> Listing {
    let mut listing = Listing::Clean;
    while let Some(answer) = asked.join_next().await {
        match answer.unwrap_or(Listing::Failed) {
            Listing::Listed => return Listing::Listed,
            Listing::Clean => {}
            Listing::Failed => listing = Listing::Failed,
        }
    }
    listing
}

/// What a zone says of a client, which has this name there.
async fn ask(resolver: TokioResolver, questions: Arc<Semaphore>, name: String) -> Listing {
    // As it is: what converts international names has no use for underscores.
    let Ok(name) = Name::from_ascii(&name) else { return Listing::Failed };
    let Ok(_permit) = questions.acquire().await else { return Listing::Failed };
    match resolver.lookup(name, RecordType::A).await {
        Ok(answer) => judge_answer(answer.answers().iter().filter_map(|record| match record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })),
        // The name does not exist, or has no address.
        Err(error) if error.is_no_records_found() => Listing::Clean,
        Err(_) => Listing::Failed,
    }
}
