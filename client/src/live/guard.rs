//! Who has access: protects the page from the rest of the web, from the machine's other users, and from the room.
//!
//! Every page that is open in the browser can reach a server on loopback, and so can everybody on this machine or behind
//! a port forward. So an HTTP request must name as its host an address that nobody else's DNS can point here (DNS
//! rebinding), and must have a token: that of the owner, who started the server, or that of the room. What costs MQTT
//! messages must come from our own page: a browser reports that in `Sec-Fetch-Site` and `Origin`, and a foreign form
//! cannot send JSON.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use thiserror::Error;

/// What everybody with a token may load, wherever the link was; everything else costs MQTT messages.
const FREE: [&str; 4] = ["/", "/page.css", "/page.js", "/icon.svg"];

/// Headers of every response. The policy lets the page load its own files and talk to its own server, and nothing else.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    // The address may hold the token.
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Why an HTTP request is refused.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The browser came by a host name that is not ours.
    #[error("this page answers to an IP address or `localhost`, not to {0:?}")]
    Host(String),
    /// Another page sent this.
    #[error("only the live page itself may ask, not {0:?}")]
    Origin(String),
    /// A form of another page could send this.
    #[error("a request must be JSON: `Content-Type: application/json`")]
    NotJson,
    /// There is no token.
    #[error("open the address with its token, as `make live` printed it")]
    Token,
    /// The body is not JSON of the expected form.
    #[error("not a valid request: {0}")]
    Malformed(serde_json::Error),
    /// Not a row of the model.
    #[error("not a row of this model: {0}")]
    Row(String),
    /// The model could not be asked about the plane.
    #[error("no regions: {0}")]
    NoRegions(String),
    /// Too many requests of the pages are pending.
    #[error("{pending} requests from pages are pending already: try again in a moment")]
    Busy {
        /// How many.
        pending: usize,
    },
    /// A page too many.
    #[error("{0} pages are connected already")]
    TooManyPages(usize),
    /// Somebody in the room wants to pause the run for everybody.
    #[error("only the person who started this page can start and pause the run")]
    NotTheOwner,
}

impl Refusal {
    /// A stable name, for programs.
    fn code(&self) -> &'static str {
        match self {
            Self::Host(_) => "wrong_host",
            Self::Origin(_) => "wrong_origin",
            Self::NotJson => "not_json",
            Self::Token => "no_token",
            Self::Malformed(_) => "malformed_request",
            Self::Row(_) => "wrong_row",
            Self::NoRegions(_) => "no_regions",
            Self::Busy { .. } => "busy",
            Self::TooManyPages(_) => "too_many_pages",
            Self::NotTheOwner => "not_the_owner",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin(_) | Self::Token | Self::NotTheOwner => StatusCode::FORBIDDEN,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Malformed(_) | Self::Row(_) => StatusCode::BAD_REQUEST,
            Self::NoRegions(_) => StatusCode::BAD_GATEWAY,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooManyPages(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({"error": {"code": self.code(), "message": self.to_string()}});
        let json = [(header::CONTENT_TYPE, "application/json")];
        (self.status(), json, error.to_string()).into_response()
    }
}

/// Whose token a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The person who started the server.
    Owner,
    /// Somebody in the room.
    Guest,
}

/// The tokens, and the check of each request.
pub struct Guard {
    owner: String,
    /// The room's token; `None` where only the owner has access.
    room: Option<String>,
    /// The name of the cookie that keeps the token in the browser. A browser sends a host's cookies to all of its ports,
    /// so two servers need two names.
    cookie: String,
}

impl Guard {
    /// A guard for the server on this port, with new tokens.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn new(port: u16, open_to_room: bool) -> Result<Self, getrandom::Error> {
        Ok(Self {
            owner: token()?,
            room: open_to_room.then(token).transpose()?,
            cookie: format!("live_token_{port}"),
        })
    }

    /// What follows the `/` of the owner's address.
    pub fn owners_query(&self) -> String {
        format!("?token={}", self.owner)
    }

    /// What follows the `/` of the room's address, if the room has access.
    pub fn rooms_query(&self) -> Option<String> {
        let room = self.room.as_ref()?;
        Some(format!("?token={room}"))
    }

    /// Check a request: whose token it has, and the token itself where the browser needs a cookie for it.
    fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(Caller, Option<&str>), Refusal> {
        let text = |name: HeaderName| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let host = text(header::HOST);
        if !self.is_ours(host) {
            return Err(Refusal::Host(host.to_owned()));
        }
        let (origin, posts) = (text(header::ORIGIN), method == Method::POST);
        // A page's own GET has no origin. Old browsers, and all at an address of the room, do not send the site.
        let is_foreign = origin != format!("http://{host}") && (posts || !origin.is_empty());
        let site = text(HeaderName::from_static("sec-fetch-site"));
        if !FREE.contains(&uri.path()) && (is_foreign || !matches!(site, "" | "same-origin")) {
            return Err(Refusal::Origin(format!("{origin} ({site})")));
        }
        if posts {
            let media_type = text(header::CONTENT_TYPE).split(';').next();
            if media_type.map(str::trim) != Some("application/json") {
                return Err(Refusal::NotJson);
            }
        }
        let shown = |text: &str, separator, name: &str| {
            text.split(separator)
                .filter_map(|pair| pair.trim().split_once('='))
                .filter(|(key, _)| *key == name)
                .find_map(|(_, value)| self.whose(value))
        };
        // The address first: the owner may open the room's address.
        if let Some((caller, token)) = shown(uri.query().unwrap_or_default(), '&', "token") {
            return Ok((caller, Some(token)));
        }
        let by_cookie = shown(text(header::COOKIE), ';', &self.cookie);
        let (caller, _) = by_cookie.ok_or(Refusal::Token)?;
        Ok((caller, None))
    }

    /// Whose token this is, if anybody's.
    fn whose(&self, shown: &str) -> Option<(Caller, &str)> {
        let room = self.room.as_deref().map(|room| (Caller::Guest, room));
        let known = [Some((Caller::Owner, self.owner.as_str())), room];
        known
            .into_iter()
            .flatten()
            .find(|(_, token)| same(shown, token))
    }

    /// An address literal cannot be pointed elsewhere by DNS, and a browser never asks DNS for `localhost`.
    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host().trim_matches(['[', ']']);
        match name.parse::<IpAddr>() {
            Ok(address) => self.room.is_some() || address.is_loopback(),
            Err(_) => name == "localhost",
        }
    }
}

fn token() -> Result<String, getrandom::Error> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret)?;
    Ok(secret.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether both are equal, in constant time.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |sum, (a, b)| sum | (a ^ b))
            == 0
}

/// Middleware of every route, which finds the [`Caller`] in the request's extensions.
pub async fn admit(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let checked = guard.check(request.method(), request.uri(), request.headers());
    let mut response = match checked {
        Err(refusal) => refusal.into_response(),
        Ok((caller, wants_cookie)) => {
            request.extensions_mut().insert(caller);
            let mut response = next.run(request).await;
            let cookie = wants_cookie.and_then(|token| {
                let cookie = format!(
                    "{}={token}; HttpOnly; SameSite=Strict; Path=/",
                    guard.cookie
                );
                cookie.parse().ok()
            });
            if let Some(cookie) = cookie {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
    };
    response.headers_mut().extend(HEADERS);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1:8890";

    fn guard(open_to_room: bool) -> Guard {
        Guard::new(8890, open_to_room).unwrap()
    }

    /// A request as our own page sends it, but for `changes` of its headers; an empty one is left out.
    fn ask(
        guard: &Guard,
        method: Method,
        uri: &str,
        changes: &[(&'static str, &str)],
    ) -> Result<(Caller, bool), Refusal> {
        let cookie = format!("a=b; live_token_8890={}", guard.owner);
        let mut all = vec![("host", HERE), ("cookie", cookie.as_str())];
        if method == Method::POST {
            all.push(("origin", "http://127.0.0.1:8890"));
            all.push(("content-type", "application/json"));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in all.iter().chain(changes) {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers = headers
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((name?, value)))
            .collect();
        let checked = guard.check(&method, &uri.parse().unwrap(), &headers);
        checked.map(|(caller, wants_cookie)| (caller, wants_cookie.is_some()))
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_answered() {
        for ours in [HERE, "localhost:8890", "localhost", "[::1]:8890"] {
            let asked = ask(&guard(false), Method::GET, "/", &[("host", ours)]);
            assert!(asked.is_ok(), "{ours}");
        }
        for foreign in [
            "",
            "evil.example:8890",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil@",
            "192.168.1.5:8890",
        ] {
            let asked = ask(&guard(false), Method::GET, "/", &[("host", foreign)]);
            assert!(matches!(asked, Err(Refusal::Host(_))), "{foreign}");
        }
    }

    #[test]
    fn only_our_own_page_may_post() {
        let post =
            |changes: &[(&'static str, &str)]| ask(&guard(false), Method::POST, "/ask", changes);
        for ours in [
            ("content-type", "application/json"),
            ("content-type", "application/json; charset=utf-8"),
            ("sec-fetch-site", "same-origin"),
        ] {
            assert!(post(&[ours]).is_ok(), "{ours:?}");
        }
        for foreign in [
            ("origin", ""),
            ("origin", "null"),
            ("origin", "http://evil.example"),
            ("origin", "http://127.0.0.1:2"),
            ("origin", "https://127.0.0.1:8890"),
            ("origin", "http://localhost:8890"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "cross-site"),
        ] {
            let asked = post(&[foreign]);
            assert!(matches!(asked, Err(Refusal::Origin(_))), "{foreign:?}");
        }
        for form in ["", "text/plain", "application/x-www-form-urlencoded"] {
            let asked = post(&[("content-type", form)]);
            assert!(matches!(asked, Err(Refusal::NotJson)), "{form}");
        }
    }

    /// A browser sends our cookie along to another port of the same host, too.
    #[test]
    fn only_our_own_page_may_listen_but_a_link_may_lead_to_it() {
        let get = |uri: &str, changes: &[(&'static str, &str)]| {
            ask(&guard(false), Method::GET, uri, changes)
        };
        for foreign in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "none"),
            ("origin", "http://127.0.0.1:2"),
            ("origin", "null"),
        ] {
            for costs in ["/events", "/anything/else"] {
                let asked = get(costs, &[foreign]);
                assert!(
                    matches!(asked, Err(Refusal::Origin(_))),
                    "{costs} {foreign:?}"
                );
            }
            assert!(get("/", &[foreign]).is_ok(), "{foreign:?}");
        }
        assert!(get("/events", &[("sec-fetch-site", "same-origin")]).is_ok());
        assert!(get("/events", &[]).is_ok());
    }

    #[test]
    fn a_token_is_shown_in_the_address_or_in_the_cookie_of_this_port() {
        let guard = guard(true);
        let (owner, room) = (guard.owner.clone(), guard.room.clone().unwrap());
        let get = |uri: &str, cookie: &str| {
            let changes = [("host", "192.168.1.5:8890"), ("cookie", cookie)];
            ask(&guard, Method::GET, uri, &changes)
        };
        for (token, caller) in [(&owner, Caller::Owner), (&room, Caller::Guest)] {
            let (uri, cookie) = (
                format!("/?token={token}"),
                format!("live_token_8890={token}"),
            );
            assert_eq!(get(&uri, "").unwrap(), (caller, true));
            assert_eq!(
                get("/events", &format!("a=b; {cookie}")).unwrap(),
                (caller, false)
            );
        }
        let wrong = "0".repeat(32);
        for (uri, cookie) in [
            ("/", String::new()),
            ("/?token=", String::new()),
            ("/?token=0", String::new()),
            (&format!("/?token={wrong}"), String::new()),
            (&format!("/?other={room}"), String::new()),
            ("/", format!("live_token_8890={wrong}")),
            ("/", format!("live_token_8891={room}")),
        ] {
            let asked = get(uri, &cookie);
            assert!(matches!(asked, Err(Refusal::Token)), "{uri} {cookie}");
        }
    }

    /// A name that leads to this machine's address would make another page's script one of ours.
    #[test]
    fn no_token_opens_the_room_to_a_foreign_name() {
        let guard = guard(true);
        for query in [guard.owners_query(), guard.rooms_query().unwrap()] {
            for foreign in ["evil.example:8890", "192.168.1.5.evil.example", ""] {
                let asked = ask(
                    &guard,
                    Method::GET,
                    &format!("/{query}"),
                    &[("host", foreign)],
                );
                assert!(matches!(asked, Err(Refusal::Host(_))), "{foreign}");
            }
        }
    }

    #[test]
    fn nobody_is_let_in_by_a_token_of_another_server() {
        let (ours, theirs) = (guard(true), guard(true));
        assert_eq!(ours.owner.len(), 32);
        for query in [theirs.owners_query(), theirs.rooms_query().unwrap()] {
            let asked = ask(&ours, Method::GET, &format!("/{query}"), &[("cookie", "")]);
            assert!(matches!(asked, Err(Refusal::Token)));
        }
        assert_ne!(Some(&ours.owner), ours.room.as_ref());
        assert_eq!(guard(false).rooms_query(), None);
    }
}
