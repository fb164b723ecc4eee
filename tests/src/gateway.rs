//! Gateways in front of a swarm, and requests to them over HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use crate::process::UmbelProcess;
use crate::swarm::with_cache;

/// How long an answer may take on a machine that runs many tests at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A gateway on a free loopback port.
pub struct Gateway {
    process: UmbelProcess,
    url: String,
    agent: Agent,
}

/// What a request was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header of this name, if it was there: seconds after which to come back.
    pub retry_after: Option<String>,
    /// The body, null where it is no JSON.
    pub json: Value,
}

impl Gateway {
    /// Starts `umbel gateway` with these arguments.
    ///
    /// # Panics
    /// If it does not become ready.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut all = with_cache();
        all.extend(["gateway", "--listen", "127.0.0.1:0"].map(str::to_owned));
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let process = UmbelProcess::start(&all).unwrap_or_else(|error| panic!("{error:#}"));
        let url = process.address().to_owned();
        Self::of(process, url)
    }

    /// The gateway that a process has at this address.
    #[must_use]
    pub fn of(process: UmbelProcess, url: String) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_TIMEOUT));
        Self { process, url, agent: config.build().into() }
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &UmbelProcess {
        &self.process
    }

    /// Its process, to be stopped or to go on.
    pub const fn process_mut(&mut self) -> &mut UmbelProcess {
        &mut self.process
    }

    /// Its process, for whom no more is asked.
    #[must_use]
    pub fn into_process(self) -> UmbelProcess {
        self.process
    }

    /// Asks for what is at a path.
    ///
    /// # Panics
    /// If nothing answers.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        let response = self.agent.get(self.url(path)).call();
        answer(response.unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// Sends a body, whatever it is.
    ///
    /// # Panics
    /// If nothing answers.
    #[must_use]
    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        let response = self.agent.post(self.url(path)).send(body);
        answer(response.unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// Sends a body with a header.
    ///
    /// # Panics
    /// If nothing answers.
    #[must_use]
    pub fn post_with(&self, path: &str, header: (&str, &str), body: &[u8]) -> Answer {
        let response = self.agent.post(self.url(path)).header(header.0, header.1).send(body);
        answer(response.unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// Sends JSON and wants a good answer.
    ///
    /// # Panics
    /// If the answer is not good.
    #[must_use]
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.json);
        answer.json
    }

    /// Sends JSON and gives the events of the answer as they come.
    ///
    /// # Panics
    /// If the answer is not good.
    #[must_use]
    pub fn stream(&self, path: &str, body: &Value) -> Events {
        self.stream_with(path, ("accept", "text/event-stream"), body)
    }

    /// The same with a header.
    ///
    /// # Panics
    /// If the answer is not good.
    #[must_use]
    pub fn stream_with(&self, path: &str, header: (&str, &str), body: &Value) -> Events {
        let request = self.agent.post(self.url(path)).header(header.0, header.1);
        let response = request.send(body.to_string());
        let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.status(), 200);
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        assert_eq!(kind, Some("text/event-stream"));
        let reader: Box<dyn std::io::Read> = Box::new(response.into_body().into_reader());
        let ends_with_done = !["/v1/messages", "/v1/responses"].contains(&path);
        Events { lines: BufReader::new(reader), ends_with_done }
    }

    /// Sends bytes that need not be HTTP, and gives all that comes back until the gateway closes.
    ///
    /// # Panics
    /// If it cannot be reached, or leaves the connection open.
    #[must_use]
    pub fn raw(&self, bytes: &[u8]) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
        stream.write_all(bytes).expect("the gateway reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the gateway closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a head that the gateway need not read to its end, and gives what comes back, which is
    /// nothing where it closes the connection first.
    ///
    /// # Panics
    /// If it cannot be reached.
    #[must_use]
    pub fn raw_head(&self, head: &str) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
        let _in_part = stream.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Where something is.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

/// The events of a stream. Dropping them closes the connection.
pub struct Events {
    lines: BufReader<Box<dyn std::io::Read>>,
    /// As the streams of older interfaces do.
    ends_with_done: bool,
}

impl Iterator for Events {
    type Item = Value;

    /// The next event; `None` behind the last one.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("the stream goes on to its end");
            if read == 0 {
                assert!(!self.ends_with_done, "a stream ends with [DONE]");
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let done = data.trim() == "[DONE]";
                return (!done).then(|| serde_json::from_str(data).expect("an event is JSON"));
            }
        }
    }
}

fn answer(response: ureq::http::Response<ureq::Body>) -> Answer {
    let status = response.status().as_u16();
    let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let retry_after = header.map(str::to_owned);
    let text = response.into_body().read_to_string().expect("a body of text");
    Answer { status, retry_after, json: serde_json::from_str(&text).unwrap_or_default() }
}
