//! `GET /`: a page to chat and to see the swarm by, all of it in this binary.

use axum::extract::Path;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Nothing comes from elsewhere, and nothing goes there.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page is made of, by the names that it uses.
const FILES: [(&str, &str, &str); 8] = [
    ("style.css", CSS, include_str!("page/style.css")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("chat.js", SCRIPT, include_str!("page/chat.js")),
    ("settings.js", SCRIPT, include_str!("page/settings.js")),
    ("stream.js", SCRIPT, include_str!("page/stream.js")),
    ("strip.js", SCRIPT, include_str!("page/strip.js")),
    ("swarm.js", SCRIPT, include_str!("page/swarm.js")),
    ("trace.js", SCRIPT, include_str!("page/trace.js")),
];

pub(super) async fn page() -> Response {
    respond(HTML, include_str!("page/index.html"))
}

pub(super) async fn file(uri: Uri, Path(name): Path<String>) -> Result<Response, ApiError> {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => Ok(respond(kind, text)),
        None => {
            let message = format!("there is nothing at {}", uri.path());
            Err(ApiError::refused(StatusCode::NOT_FOUND, message))
        }
    }
}

fn respond(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of this program may serve it the next time.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_files_that_are_there_and_nothing_of_elsewhere() {
        let page = include_str!("page/index.html");
        for (name, _, text) in FILES {
            let imported = format!("./{name}\"");
            let used = page.contains(&format!("\"page/{name}\""))
                || FILES.iter().any(|(_, _, text)| text.contains(&imported));
            assert!(used, "nothing uses {name}");
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let from = line.rsplit('"').nth(1).unwrap().trim_start_matches("./");
                assert!(FILES.iter().any(|(known, ..)| *known == from), "{name}: {line}");
            }
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{name}");
        }
        assert!(!page.contains("http"), "the page asks nobody else");
    }
}
