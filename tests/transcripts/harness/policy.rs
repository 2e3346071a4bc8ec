//! Whom a session of a transcript asks: the real parts of `gatepost::policy` and `gatepost::users`, put
//! together as the gateway does it.

use super::driver::{Judgement, Outside};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use gatepost::policy::{
    self, AcceptedDomains, AddressRanges, BindingRules, Door, DynamicBlocks, RateTable, RecipientVerdict, Slot,
    SlotCount, SourceHasher, Sources,
};
use gatepost::smtp::address::Path;
use gatepost::smtp::reply::Reply;
use gatepost::smtp::sasl::{Mechanisms, ntlm};
use gatepost::smtp::server::{Logon, Profile, Query, Role, Verdict};
use gatepost::users::{User, Users};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Whose passwords were found to be right or wrong: a hash costs more than all else in a run, and a
/// transcript has as many runs as octets.
pub type Passwords = Rc<RefCell<HashMap<[String; 2], Option<Arc<User>>>>>;

/// The options that a session and its policy are made with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub profile: Profile,
    pub client: IpAddr,
    pub accepted_domains: AcceptedDomains,
    pub relay_from: AddressRanges,
    pub message_rate_per_minute: u32,
    /// Of an authenticated user, on a relay.
    pub user_message_rate_per_minute: u32,
    pub logon_failures_per_minute: u32,
    /// The client is on a DNS block list.
    pub on_block_list: bool,
    /// TLS comes before the banner.
    pub implicit_tls: bool,
    /// Where the binding listens.
    pub binding: SocketAddr,
    /// The text of the users file.
    pub users_text: String,
    pub users: Option<Arc<Users>>,
    pub passwords: Passwords,
    pub door: DoorSettings,
}

impl Settings {
    /// Adds a user, `NAME:PASSWORD` and then, with colons between them, `ntlm` (also an NT hash), `ntlm-only`,
    /// `senders=..`, `bindings=..`.
    pub fn add_user(&mut self, user: &str) -> Result<(), String> {
        let mut words = user.split(':');
        let (name, password) = words.next().zip(words.next()).ok_or("not NAME:PASSWORD")?;
        let nt_hash: String = ntlm::nt_hash(password).iter().map(|octet| format!("{octet:02x}")).collect();
        let mut entry = vec![name.to_owned(), format!("password={}", cheap_hash(password))];
        for word in words {
            match word {
                "ntlm" => entry.push(format!("nt-hash={nt_hash}")),
                "ntlm-only" => entry[1] = format!("nt-hash={nt_hash}"),
                word => entry.push(word.to_owned()),
            }
        }
        self.users_text.push_str(&entry.join(" "));
        self.users_text.push('\n');
        self.users = Some(Arc::new(Users::parse(&self.users_text).map_err(|error| error.to_string())?));
        Ok(())
    }
}

/// A hash of this password that costs next to nothing: a transcript is run as often as it has octets.
fn cheap_hash(password: &str) -> String {
    let params = Params::new(Params::MIN_M_COST, Params::MIN_T_COST, Params::MIN_P_COST, None).expect("the least");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_with_salt(password.as_bytes(), b"salt of a test..").expect("a password").to_string()
}

/// What a client that connects is met with, before the banner.
#[derive(Clone, Debug)]
pub struct DoorSettings {
    pub allow: Option<AddressRanges>,
    pub blocked: AddressRanges,
    pub blocked_for_a_time: DynamicBlocks,
    pub resources_short: bool,
    pub connections_max: u32,
    pub connections_per_source_max: u32,
    /// Clients that are there, each with so many connections.
    pub open: Vec<(IpAddr, u32)>,
    /// An address that was refused something when the clock began (E17).
    pub marked: Option<IpAddr>,
    /// When the client connects, by that clock.
    pub now_ms: u64,
}

impl DoorSettings {
    /// What the gateway's `Shared::admit` does, over the same parts: whether the client's banner is
    /// to be late, or the refusal.
    pub fn admit(&self, client: IpAddr, profile: &Profile) -> Result<bool, Reply> {
        let rules = BindingRules { role: profile.role, allow: self.allow.clone() };
        let door = Door {
            rules: &rules,
            blocked: &self.blocked,
            blocked_for_a_time: &self.blocked_for_a_time,
            resources_short: self.resources_short,
            now_ms: self.now_ms,
        };
        if let Some(reply) = door.refusal(client) {
            return Err(reply);
        }
        let sources = Sources::new(SlotCount::new(SlotCount::MIN).expect("a count of slots"), 64);
        for (address, count) in &self.open {
            for _ in 0..*count {
                sources.try_enter(0).expect("there is no limit yet");
                sources.try_connect(*address, 0).expect("nor here");
            }
        }
        if let Some(marked) = self.marked {
            let source = sources.try_connect(marked, 0).expect("there is no limit yet");
            sources.mark(source, 0);
            sources.disconnect(source);
        }
        sources.try_enter(self.connections_max)?;
        let source = sources.try_connect(client, self.connections_per_source_max)?;
        Ok(profile.tarpit.is_some() && sources.take_mark(source, self.now_ms))
    }
}

/// What the gateway's `inbound::decide` and `inbound::authenticate` do, over the same parts.
pub struct Gateway {
    settings: Settings,
    started: Instant,
    client: Slot,
    hasher: SourceHasher,
    rates: RateTable,
    user_rates: RateTable,
    logons: RateTable,
    /// Who has authenticated.
    user: Option<Arc<User>>,
}

impl Gateway {
    pub fn new(settings: &Settings, started: Instant) -> Self {
        let slots = SlotCount::new(SlotCount::MIN).expect("a count of slots");
        let hasher = SourceHasher::with_seeds(slots, 64, [1, 2, 3, 4]);
        Gateway {
            settings: settings.clone(),
            started,
            client: hasher.slot(settings.client),
            hasher,
            rates: RateTable::new(slots),
            user_rates: RateTable::new(slots),
            logons: RateTable::new(slots),
            user: None,
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_millis() as u64
    }

    fn decide_sender(&self, now: Instant, path: &Path<'_>) -> Verdict {
        let profile = &self.settings.profile;
        let mailbox = if let Path::Mailbox(mailbox) = path { Some(mailbox) } else { None };
        if self.user.as_ref().is_some_and(|user| !user.may_send_as(mailbox, profile.default_domain.as_deref())) {
            return Verdict::Refuse(Reply::SenderNotPermitted);
        }
        let (now_ms, settings) = (self.ms(now), &self.settings);
        let (accepted, refusal) = match &self.user {
            Some(user) if profile.role == Role::Relay => {
                let slot = self.hasher.slot_of_user(user.name());
                let max = settings.user_message_rate_per_minute;
                (self.user_rates.try_count(slot, now_ms, max), Reply::UserRateExceeded)
            }
            _ => {
                let max = settings.message_rate_per_minute;
                (self.rates.try_count(self.client, now_ms, max), Reply::RateExceeded)
            }
        };
        if accepted { Verdict::Accept } else { Verdict::Refuse(refusal) }
    }

    fn verify(&self, logon: &Logon) -> Option<Arc<User>> {
        let users = self.settings.users.as_ref()?;
        match logon {
            Logon::Malformed(_) => None,
            Logon::Ntlm(logon) => users.verify_nt_hash(logon.name(), |hash| logon.verify(hash)),
            Logon::Password(_, given) => {
                let [name, password] = [&given.name, &*given.password];
                let mut judged = self.settings.passwords.borrow_mut();
                let judgement = judged.entry([name.clone(), password.clone()]);
                judgement.or_insert_with(|| users.verify_password(name, password.as_bytes())).clone()
            }
        }
    }
}

impl Outside for Gateway {
    fn mechanisms(&self) -> Mechanisms {
        let Some(users) = &self.settings.users else { return Mechanisms::default() };
        Mechanisms { ntlm: users.has_nt_hash(), login: users.has_password(), plain: users.has_password() }
    }

    fn decide(&mut self, now: Instant, query: &Query<'_>) -> Verdict {
        let mailbox = match query {
            Query::Sender(path) => return self.decide_sender(now, path),
            Query::Recipient(mailbox) => mailbox,
        };
        let settings = &self.settings;
        let postmaster = mailbox.is_postmaster();
        let default = settings.profile.default_domain.as_deref().filter(|_| !postmaster);
        let domain = mailbox.domain().or(default.map(str::as_bytes));
        let relay_allowed = self.user.is_some() || settings.relay_from.contains(settings.client);
        let verdict = policy::recipient(&settings.accepted_domains, relay_allowed, domain, postmaster);
        let role = settings.profile.role;
        if settings.on_block_list && policy::minds_block_lists(role, relay_allowed, postmaster, verdict) {
            return Verdict::Refuse(Reply::OnBlockList);
        }
        match verdict {
            RecipientVerdict::Accept => Verdict::Accept,
            RecipientVerdict::RelayDenied => Verdict::Refuse(Reply::UnableToRelay),
        }
    }

    fn judge(&mut self, now: Instant, logon: Logon) -> Judgement {
        let failures_max = self.settings.logon_failures_per_minute;
        if !self.logons.try_count(self.client, self.ms(now), failures_max) {
            return Judgement::Unavailable;
        }
        let Some(user) = self.verify(&logon) else { return Judgement::Refuse };
        if failures_max > 0 {
            self.logons.uncount(self.client);
        }
        if !user.may_use(self.settings.binding) {
            return Judgement::NotHere;
        }
        let name = user.name().to_owned();
        self.user = Some(user);
        Judgement::Accept(name)
    }
}
