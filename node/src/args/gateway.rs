//! What `umbel gateway` takes.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use axum::http::HeaderValue;
use clap::{Arg, Args};

use super::place::host_port;
use super::{ChainArguments, ModelArguments, SpeculateArguments};

/// `umbel gateway`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel gateway --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel gateway --local --listen 127.0.0.1:0

Once it answers, it prints one line to stdout: ready http://ADDRESS
Clients of OpenAI's interface take http://ADDRESS/v1 as their base URL. Ctrl-C stops it.")]
pub struct GatewayArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Where it is computed.
    #[command(flatten)]
    pub chain: ChainArguments,

    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Who may ask, and how many at once.
    #[command(flatten)]
    pub front: FrontArguments,

    /// Where Prometheus finds what is counted, at /metrics.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub metrics: Option<SocketAddr>,

    /// Learn adapters for those who ask, by /v1/files and /v1/fine_tuning/jobs, and keep them and what
    /// they are learned from in this folder.
    #[arg(long, value_name = "DIR")]
    pub fine_tuning: Option<PathBuf>,

    /// Whether tokens are guessed.
    #[command(flatten)]
    pub speculate: SpeculateArguments,
}

/// Answers at once where no number was typed.
const ANSWERS: u16 = 16;

/// Requests that wait where no number was typed.
const WAITING: u16 = 128;

/// Who may ask a gateway, and how many at once.
#[derive(Debug, Args)]
pub struct FrontArguments {
    /// Who may ask, and how much: a TOML file with a table `key` for each, which has a name, a key, and
    /// if need be requests_per_minute and tokens_per_minute.
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// Listen without keys where others can reach it, or on loopback behind a proxy: everybody who does may
    /// ask, by whatever name.
    #[arg(long, conflicts_with = "keys")]
    pub allow_anyone: bool,

    /// An origin, as `https://chat.example`, whose pages may ask in their visitors' browsers, with the keys
    /// of these; give it several times for several. Needs --keys.
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub allow_origin: Vec<HeaderValue>,

    /// Answers at once; further requests wait for their turn [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    answers: Option<u16>,

    /// Requests that wait for their turn; further ones are told to come back later (429) [default: 128].
    #[arg(long, value_name = "N")]
    waiting: Option<u16>,
}

impl FrontArguments {
    /// Answers at once.
    #[must_use]
    pub fn answers(&self) -> u16 {
        self.answers.unwrap_or(ANSWERS)
    }

    /// Requests that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> u16 {
        self.waiting.unwrap_or(WAITING)
    }
}

/// What says who may ask a gateway, of a command that has one only if it is told to with `--gateway`:
/// without that it would keep nobody out. None of it has a value by itself, which `--print-config` would
/// print for a file that is then refused.
pub(super) fn of_gateway(argument: Arg) -> Arg {
    let of_front = ["keys", "allow_anyone", "allow_origin", "answers", "waiting"];
    if of_front.contains(&argument.get_id().as_str()) {
        argument.requires("gateway")
    } else {
        argument
    }
}

/// The origin of a page, as browsers write it.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = "an origin is SCHEME://HOST or SCHEME://HOST:PORT, and nothing behind it";
    let origin = sent_by_browsers(&text.to_ascii_lowercase()).ok_or(wrong)?;
    HeaderValue::from_str(&origin).map_err(|_| wrong.to_owned())
}

/// An origin as <https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin> has it: the port that is
/// usual for its scheme is left out.
fn sent_by_browsers(text: &str) -> Option<String> {
    let is_plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let (scheme, rest) = text.split_once("://")?;
    let (host, port) = match rest.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => is_plain(host, "-._"),
    };
    if !is_plain(scheme, "+-.") || !is_host {
        return None;
    }
    let usual = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let port = match port {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse::<u16>().ok()?)
        }
        Some(_) => return None,
        None => None,
    };
    Some(match port.filter(|port| Some(*port) != usual) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::origin;
    use crate::args::Arguments;

    #[test]
    fn who_may_ask_is_said_of_a_gateway_alone() {
        let of_front = [
            "--keys=keys.toml",
            "--allow-anyone",
            "--allow-origin=https://chat.example",
            "--answers=4",
            "--waiting=8",
        ];
        for (command, flag) in
            ["serve", "demo"].into_iter().flat_map(|command| of_front.map(|flag| (command, flag)))
        {
            let typed = |more: &[&'static str]| {
                let words = ["umbel", command, flag].into_iter().chain(more.iter().copied());
                Arguments::try_parse_from(words)
            };
            let refused = typed(&[]).expect_err(flag).to_string();
            assert!(refused.contains("--gateway"), "{command} {flag}: {refused}");
            assert!(typed(&["--gateway=127.0.0.1:0"]).is_ok(), "{command} {flag}");
        }
        assert!(Arguments::try_parse_from(["umbel", "serve"]).is_ok(), "none of them was typed");
        assert!(Arguments::try_parse_from(["umbel", "gateway", "--local", "--answers=4"]).is_ok());
    }

    #[test]
    fn an_origin_is_what_browsers_say_and_no_address_of_a_page() {
        for (typed, sent) in [
            ("https://chat.example", "https://chat.example"),
            ("HTTP://Chat.Example:8080", "http://chat.example:8080"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
            ("https://chat.example:443", "https://chat.example"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://chat.example:443", "http://chat.example:443"),
            ("tauri://localhost:80", "tauri://localhost:80"),
        ] {
            assert_eq!(origin(typed).unwrap(), sent);
        }
        for wrong in [
            "*",
            "null",
            "chat.example",
            "https://",
            "https://chat.example/",
            "https://*.example",
            "https://:8080",
            "https://chat.example:",
            "https://chat.example:+443",
            "https://chat.example:65536",
            "https://chat.example:8080:8080",
            "http://[]:3000",
            "http://[::1",
            "http://::1",
        ] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }
}
