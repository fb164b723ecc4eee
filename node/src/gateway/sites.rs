//! What pages in the browsers of others may have asked: nothing, but those whose origins were named.
//!
//! A page reaches whatever its visitor's browser does, this machine among it. Browsers say whose page asks,
//! and name the host that it was asked as: the name of a page's own site may have been pointed at this
//! machine behind its back (DNS rebinding), after which the browser takes the two for one site.
//!
//! A page of an origin that was named asks with its visitor's key. Its browser first asks, without the key,
//! whether it may send that at all (a preflight, as <https://fetch.spec.whatwg.org/#http-cors-protocol> has
//! it), and lets the page read what it is told it may.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::ApiError;

/// How long a browser may remember that it may ask, which is the most that Chrome does.
const ALLOWED_FOR: Duration = Duration::from_secs(2 * 60 * 60);

/// Answers browsers whether pages of these origins may ask; nothing where there are none.
pub(super) fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Clients send many of their own, and none but the key says anything here.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(ALLOWED_FOR);
    (!origins.is_empty()).then_some(cors)
}

/// Refuses what a page of another site has its visitor's browser ask, unless it is of one of `origins`.
/// Where nothing else tells who may ask than that they are on this machine (`guarded`), the host has to
/// be one that no site can be called, and the page the gateway's own.
pub(super) fn foreign(
    headers: &HeaderMap,
    guarded: bool,
    origins: &[HeaderValue],
) -> Option<ApiError> {
    if headers.get(header::ORIGIN).is_some_and(|origin| origins.contains(origin)) {
        return None;
    }
    let sent = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let refused = |message| Some(ApiError::refused(StatusCode::FORBIDDEN, message));
    let site = sent(HeaderName::from_static("sec-fetch-site"));
    if site == Some("cross-site") || (guarded && site == Some("same-site")) {
        return refused("a page of another site may not ask this gateway");
    }
    if !guarded {
        return None;
    }
    let host = sent(header::HOST).unwrap_or_default();
    if !is_nobodys_site(host) {
        return refused(
            "without keys this gateway is for its own machine, and is asked as localhost or by an IP \
             address: behind a proxy or under another name it needs --keys FILE, or --allow-anyone",
        );
    }
    let origin = sent(header::ORIGIN).map(|origin| origin.split_once("://"));
    match origin {
        Some(page) if page.is_none_or(|(_, page)| !page.eq_ignore_ascii_case(host)) => {
            refused("a page of another site may not ask this gateway")
        }
        _ => None,
    }
}

/// Whether a host, with or without a port, is called something that nobody can point elsewhere.
fn is_nobodys_site(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a request with these headers is let through.
    fn passes(guarded: bool, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let named = HeaderValue::from_static("https://named.example");
        foreign(&headers.collect(), guarded, &[named]).is_none()
    }

    #[test]
    fn a_gateway_without_keys_is_asked_as_its_own_machine() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "[::1]:8080", "10.0.0.7"] {
            assert!(passes(true, &[("host", host)]), "{host}");
        }
        let others =
            ["evil.example:8080", "localhost.evil.example", "", "::1", "127.0.0.1.evil", "["];
        for host in others {
            assert!(!passes(true, &[("host", host)]), "{host}");
            assert!(passes(false, &[("host", host)]), "{host}: with keys it may have any name");
        }
        assert!(!passes(true, &[]), "browsers always say it");
    }

    #[test]
    fn no_page_asks_but_the_gateways_own() {
        let from = |guarded, site, origin| {
            passes(
                guarded,
                &[("host", "127.0.0.1:8080"), ("sec-fetch-site", site), ("origin", origin)],
            )
        };
        assert!(from(true, "same-origin", "http://127.0.0.1:8080"));
        for (site, origin) in [
            ("cross-site", "http://127.0.0.1:8080"),
            ("same-site", "http://127.0.0.1:8080"),
            ("same-origin", "http://127.0.0.1:3000"),
            ("same-origin", "http://localhost:8080"),
            ("none", "http://evil.example"),
            ("none", "null"),
        ] {
            assert!(!from(true, site, origin), "{site} {origin}");
        }
        assert!(from(false, "same-site", "https://chat.example"), "keys tell who asks");
        assert!(!from(false, "cross-site", "https://chat.example"));
        assert!(from(false, "cross-site", "https://named.example"));
        assert!(!from(false, "cross-site", "https://named.example:8443"), "another origin");
        // Who is no browser says nothing of pages.
        assert!(passes(true, &[("host", "127.0.0.1:8080")]));
        // The page is another's, whose name was pointed at this machine.
        assert!(!passes(
            true,
            &[
                ("host", "evil.example:8080"),
                ("origin", "http://evil.example:8080"),
                ("sec-fetch-site", "same-origin"),
            ],
        ));
    }
}
