//! Which next hops a domain's mail goes to.
//!
//! Next hops and routes are numbered: a [`NextHopId`] is a place in the configuration's list of
//! next hops and in the shared table of their states, a [`RouteId`] a list of next hops in
//! failover order. Domains with the same list share one route, so that their mail can share
//! transactions.

use crate::limits::ROUTES_MAX;
use crate::policy::{DomainMap, DomainPattern};
use std::fmt;

/// A next hop's number: the same for all routes and shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopId(u16);

impl NextHopId {
    /// The next hop at `index` of the list; `None` beyond what the number can hold.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        u16::try_from(index).ok().map(Self)
    }

    /// Its place in the list of next hops.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A route's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(u16);

impl RouteId {
    /// The route with this number, as the queue's lanes have it.
    #[must_use]
    pub fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// Its place among the routes, below [`Routes::len`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RoutePattern {
    /// All domains without a route of their own, and recipients without a domain.
    Default,
    /// One domain, or the subdomains of one.
    Domain(DomainPattern),
}

/// More different lists of next hops than there are route numbers: the operator's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRoutes;

impl fmt::Display for TooManyRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {ROUTES_MAX} different lists of next hops")
    }
}

impl std::error::Error for TooManyRoutes {}

/// The routes: by domain, and the default.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    by_domain: DomainMap<RouteId>,
    default: Option<RouteId>,
    /// The next hops of each route, in failover order.
    next_hops: Vec<Box<[NextHopId]>>,
}

impl Routes {
    /// The routes that these items make; of two with the same pattern the later counts.
    ///
    /// # Errors
    /// [`TooManyRoutes`] beyond [`ROUTES_MAX`] different lists.
    pub fn new(items: impl IntoIterator<Item = (RoutePattern, Vec<NextHopId>)>) -> Result<Self, TooManyRoutes> {
        let mut routes = Self::default();
        for (pattern, next_hops) in items {
            let id = routes.id_of(next_hops)?;
            match pattern {
                RoutePattern::Default => routes.default = Some(id),
                RoutePattern::Domain(domain) => {
                    routes.by_domain.insert(domain, id);
                }
            }
        }
        Ok(routes)
    }

    fn id_of(&mut self, next_hops: Vec<NextHopId>) -> Result<RouteId, TooManyRoutes> {
        let known = self.next_hops.iter().position(|known| **known == *next_hops);
        let index = known.unwrap_or(self.next_hops.len());
        let id = u16::try_from(index).ok().filter(|_| index < ROUTES_MAX).ok_or(TooManyRoutes)?;
        if known.is_none() {
            self.next_hops.push(next_hops.into());
        }
        Ok(RouteId(id))
    }

    /// The route for a recipient's domain as it stands in the forward-path; `None`, the domain of
    /// a bare `Postmaster`, takes the default. The domain's own route comes first, then that of
    /// the longest `.parent`, then the default. Without a route the mail is held. Allocates
    /// nothing.
    #[must_use]
    pub fn route(&self, domain: Option<&[u8]>) -> Option<RouteId> {
        domain.and_then(|domain| self.by_domain.get(domain).copied()).or(self.default)
    }

    /// A route's next hops in failover order. A number of another set of routes has none.
    #[must_use]
    pub fn next_hops(&self, route: RouteId) -> &[NextHopId] {
        self.next_hops.get(route.index()).map_or(&[], |next_hops| next_hops)
    }

    /// How many different routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.next_hops.len()
    }

    /// Whether there is none: all mail is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next_hops.is_empty()
    }
}

/// The domain of a stored forward-path, without brackets; `None` for a bare `Postmaster`.
///
/// A domain and an address literal have no `@`, so it is what follows the last one, unless the
/// path ends inside a quoted local part (RFC 5321 section 4.1.2).
#[must_use]
pub fn recipient_domain(path: &[u8]) -> Option<&[u8]> {
    if path.last() == Some(&b'"') {
        return None;
    }
    let at = memchr::memrchr(b'@', path)?;
    path.get(at + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::mailbox;
    use proptest::prelude::*;

    fn hops(indices: &[usize]) -> Vec<NextHopId> {
        indices.iter().map(|&index| NextHopId::from_index(index).expect("small")).collect()
    }

    fn pattern(item: &str) -> RoutePattern {
        match item {
            "*" => RoutePattern::Default,
            domain => RoutePattern::Domain(domain.parse().expect("a domain")),
        }
    }

    fn routes(items: &[(&str, &[usize])]) -> Routes {
        Routes::new(items.iter().map(|(item, indices)| (pattern(item), hops(indices)))).expect("few")
    }

    #[test]
    fn the_most_particular_route_counts() {
        let routes = routes(&[
            ("*", &[0, 1]),
            ("example.org", &[2]),
            (".example.org", &[3]),
            (".sub.example.org", &[1, 0]),
            ("[192.0.2.1]", &[4]),
            ("twin.example", &[2]),
        ]);
        assert_eq!(routes.len(), 5, "the same list is one route");
        for (path, expected) in [
            ("a@example.org", &[2][..]),
            ("a@EXAMPLE.Org", &[2]),
            ("a@twin.example", &[2]),
            ("a@x.example.org", &[3]),
            ("a@sub.example.org", &[3]),
            ("a@x.y.Sub.example.org", &[1, 0]),
            ("a@xexample.org", &[0, 1]),
            ("a@other.example", &[0, 1]),
            ("a@[192.0.2.1]", &[4]),
            ("a@[IPv6:::ffff:192.0.2.1]", &[4]),
            ("a@[192.0.2.2]", &[0, 1]),
            ("\"x@example.org\"@other.example", &[0, 1]),
            ("\"x@y\"@example.org", &[2]),
            ("Postmaster", &[0, 1]),
        ] {
            let route = routes.route(recipient_domain(path.as_bytes())).expect("a default");
            assert_eq!(routes.next_hops(route), hops(expected), "{path}");
        }
        assert_eq!(routes.route(Some(b"example.org")), routes.route(Some(b"twin.example")));
    }

    #[test]
    fn without_a_default_the_rest_has_no_route() {
        let routes = routes(&[("example.org", &[0])]);
        assert!(routes.route(Some(b"example.org")).is_some_and(|route| route.index() == 0));
        assert_eq!((routes.route(Some(b"example.net")), routes.route(None)), (None, None));
        assert!(!routes.is_empty());
        let none = Routes::default();
        assert!(none.is_empty() && none.route(None).is_none());
        assert_eq!(none.next_hops(RouteId(0)), []);
    }

    #[test]
    fn routes_are_bounded() {
        let item = |index: usize| (pattern(&format!("d{index}.example")), hops(&[index, index + 1]));
        assert_eq!(Routes::new((0..ROUTES_MAX).map(item)).map(|routes| routes.len()), Ok(ROUTES_MAX));
        assert_eq!(Routes::new((0..=ROUTES_MAX).map(item)).map(|routes| routes.len()), Err(TooManyRoutes));
        assert_eq!(NextHopId::from_index(1 << 16), None);
    }

    #[test]
    fn domains_of_recipients() {
        for (path, domain) in [
            ("Postmaster", None),
            ("\"a@b\"", None),
            ("", None),
            ("a@b.c", Some("b.c")),
            ("\"a@b\\\"@c\"@d.e", Some("d.e")),
            ("a@[IPv6:2001:db8::1]", Some("[IPv6:2001:db8::1]")),
        ] {
            assert_eq!(recipient_domain(path.as_bytes()), domain.map(str::as_bytes), "{path}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_parser(path in "[ab.]{1,4}(@[ab.]{1,5})?|\"([ab@]|\\\\[\"\\\\@a]){0,6}\"(@(b\\.c|\\[192\\.0\\.2\\.1\\]))?") {
            if let Some(mailbox) = mailbox(path.as_bytes()) {
                prop_assert_eq!(recipient_domain(path.as_bytes()), mailbox.domain());
            }
        }

        #[test]
        fn any_octets_are_answered(path: Vec<u8>) {
            let _ = routes(&[(".example.org", &[0])]).route(recipient_domain(&path));
        }
    }
}
