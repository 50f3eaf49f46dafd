//! Who is let in: what stands between the page and the rest of the web, or the room.
//!
//! A server on loopback is reached by every page that the browser has open. So a request must name us as a
//! host that no stranger's DNS can point at us (DNS rebinding), and one that changes something must come from
//! our own page: its `Origin` is ours, and its content type is one that a foreign form cannot send.

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

/// The cookie that stands for the token once a browser has shown it.
const COOKIE: &str = "live_token";

/// On every answer. The policy lets the page load its own files and talk to its own server, and nothing else.
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

/// Why a request is not served.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The browser was led here by a name that is not ours.
    #[error("this page answers to an IP address or `localhost`, not to {0:?}")]
    Host(String),
    /// Another page is asking.
    #[error("only the live page itself may ask, not {0:?}")]
    Origin(String),
    /// A form of another page could send this.
    #[error("a question is JSON: `Content-Type: application/json`")]
    NotJson,
    /// In the room, and without the token.
    #[error("open the address with its token, as `make live` printed it")]
    Token,
    /// Not what is asked for here.
    #[error("not a question: {0}")]
    Malformed(serde_json::Error),
    /// Not a row of the model.
    #[error("not a row of this model: {0}")]
    Row(String),
    /// The model could not be asked about the plane.
    #[error("no regions: {0}")]
    NoRegions(String),
    /// The questions of the pages wait for each other.
    #[error("{waiting} questions from pages are waiting already: try again in a moment")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// A page too many.
    #[error("{0} pages are listening already")]
    TooManyPages(usize),
    /// Somebody in the room wants to stop what everybody sees.
    #[error("the run is started and paused at the machine that it runs on")]
    NotAtTheMachine,
}

impl Refusal {
    /// A stable name, for programs.
    fn code(&self) -> &'static str {
        match self {
            Self::Host(_) => "wrong_host",
            Self::Origin(_) => "wrong_origin",
            Self::NotJson => "not_json",
            Self::Token => "no_token",
            Self::Malformed(_) => "malformed_question",
            Self::Row(_) => "wrong_row",
            Self::NoRegions(_) => "no_regions",
            Self::Busy { .. } => "busy",
            Self::TooManyPages(_) => "too_many_pages",
            Self::NotAtTheMachine => "not_at_the_machine",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin(_) | Self::Token | Self::NotAtTheMachine => StatusCode::FORBIDDEN,
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

/// Who may come in.
pub struct Guard {
    /// What a browser from the room has to show; `None` on loopback.
    token: Option<String>,
}

impl Guard {
    /// This machine only.
    pub fn loopback() -> Self {
        Self { token: None }
    }

    /// Whoever has a token, which is made here.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn room() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        let token = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { token: Some(token) })
    }

    /// Whether a token is needed.
    pub fn is_room(&self) -> bool {
        self.token.is_some()
    }

    /// What follows the `/` of the address.
    pub fn query(&self) -> String {
        self.token
            .as_ref()
            .map_or_else(String::new, |token| format!("?token={token}"))
    }

    /// Look at a request; `Ok(true)` when it shows the token in its address and wants the cookie for it.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<bool, Refusal> {
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
        if method == Method::POST {
            let origin = text(header::ORIGIN);
            if origin != format!("http://{host}") {
                return Err(Refusal::Origin(origin.to_owned()));
            }
            let media_type = text(header::CONTENT_TYPE).split(';').next();
            if media_type.map(str::trim) != Some("application/json") {
                return Err(Refusal::NotJson);
            }
        }
        let Some(token) = &self.token else {
            return Ok(false);
        };
        let shown = |text: &str, separator, name| {
            text.split(separator)
                .filter_map(|pair| pair.trim().split_once('='))
                .any(|(key, value)| key == name && same(value, token))
        };
        if shown(text(header::COOKIE), ';', COOKIE) {
            return Ok(false);
        }
        if shown(uri.query().unwrap_or_default(), '&', "token") {
            return Ok(true);
        }
        Err(Refusal::Token)
    }

    /// An address literal cannot be pointed elsewhere by DNS, and a browser never asks DNS for `localhost`.
    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host().trim_matches(['[', ']']);
        match name.parse::<IpAddr>() {
            Ok(address) => self.is_room() || address.is_loopback(),
            Err(_) => name == "localhost",
        }
    }
}

/// Whether both are the same, in a time that does not tell how far they are.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |sum, (a, b)| sum | (a ^ b))
            == 0
}

/// In front of every route.
pub async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(request.method(), request.uri(), request.headers()) {
        Err(refusal) => refusal.into_response(),
        Ok(wants_cookie) => {
            let mut response = next.run(request).await;
            if let (true, Some(token)) = (wants_cookie, &guard.token)
                && let Ok(cookie) =
                    format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/").parse()
            {
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

    fn get(guard: &Guard, host: &str, uri: &str, cookie: &str) -> Result<bool, Refusal> {
        let headers = headers(&[("host", host), ("cookie", cookie)]);
        guard.check(&Method::GET, &uri.parse().unwrap(), &headers)
    }

    fn post(host: &str, origin: &str, content_type: &str) -> Result<bool, Refusal> {
        let headers = headers(&[
            ("host", host),
            ("origin", origin),
            ("content-type", content_type),
        ]);
        Guard::loopback().check(&Method::POST, &Uri::from_static("/ask"), &headers)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let given = pairs.iter().filter(|(_, value)| !value.is_empty());
        given
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_answered() {
        let guard = Guard::loopback();
        for ours in [
            "127.0.0.1:8890",
            "localhost:8890",
            "localhost",
            "[::1]:8890",
        ] {
            assert!(get(&guard, ours, "/", "").is_ok(), "{ours}");
        }
        for foreign in [
            "",
            "evil.example:8890",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil@",
            "192.168.1.5:8890",
        ] {
            assert!(
                matches!(get(&guard, foreign, "/", ""), Err(Refusal::Host(_))),
                "{foreign}"
            );
        }
    }

    #[test]
    fn only_our_own_page_may_post() {
        let (ours, json) = ("http://127.0.0.1:1", "application/json");
        assert!(post("127.0.0.1:1", ours, json).is_ok());
        assert!(post("127.0.0.1:1", ours, "application/json; charset=utf-8").is_ok());
        for foreign in [
            "",
            "null",
            "http://evil.example",
            "http://127.0.0.1:2",
            "https://127.0.0.1:1",
            "http://localhost:1",
        ] {
            assert!(
                matches!(post("127.0.0.1:1", foreign, json), Err(Refusal::Origin(_))),
                "{foreign}"
            );
        }
        for form in ["", "text/plain", "application/x-www-form-urlencoded"] {
            assert!(
                matches!(post("127.0.0.1:1", ours, form), Err(Refusal::NotJson)),
                "{form}"
            );
        }
    }

    #[test]
    fn the_room_needs_the_token_in_the_address_or_in_the_cookie() {
        let guard = Guard::room().unwrap();
        let token = guard.token.clone().unwrap();
        let host = "192.168.1.5:8890";
        assert!(matches!(
            get(&guard, host, &format!("/?token={token}"), ""),
            Ok(true)
        ));
        assert!(matches!(
            get(&guard, host, "/events", &format!("a=b; {COOKIE}={token}")),
            Ok(false)
        ));
        let wrong = token.replace(|_| true, "0");
        for (uri, cookie) in [
            ("/", String::new()),
            ("/?token=", String::new()),
            ("/?token=0", String::new()),
            (&format!("/?token={wrong}"), String::new()),
            (&format!("/?other={token}"), String::new()),
            ("/", format!("{COOKIE}={wrong}")),
            ("/", format!("other={token}")),
        ] {
            assert!(
                matches!(get(&guard, host, uri, &cookie), Err(Refusal::Token)),
                "{uri} {cookie}"
            );
        }
        let by_name = get(&guard, "evil.example", &format!("/?token={token}"), "");
        assert!(matches!(by_name, Err(Refusal::Host(_))));
    }

    #[test]
    fn no_two_rooms_share_a_token() {
        let tokens = [
            Guard::room().unwrap().query(),
            Guard::room().unwrap().query(),
        ];
        assert_ne!(tokens[0], tokens[1]);
        assert_eq!(tokens[0].len(), "?token=".len() + 32);
    }
}
