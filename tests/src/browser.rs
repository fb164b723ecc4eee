//! A browser without a window, driven by the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>).

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use base64::Engine as _;
use serde_json::{Value, json};
use ureq::Agent;

/// How long a page may take to become what a test waits for, on a machine that runs many at once.
const WAIT: Duration = Duration::from_secs(60);

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Escape, as WebDriver writes keys that are no characters.
pub const ESCAPE: &str = "\u{e00c}";
/// Return, likewise.
pub const ENTER: &str = "\u{e007}";

/// Chromium with a page, and the program that drives it. Both end when this is dropped.
pub struct Browser {
    driver: Child,
    session: String,
    agent: Agent,
}

impl Browser {
    /// Starts one; `None` where this machine has no `chromedriver`.
    ///
    /// # Panics
    /// If it is there and does not work.
    #[must_use]
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().ok()?;
        let stdout = driver.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("started successfully on port"));
        let line = line.expect("chromedriver says where it listens");
        let port = line.rsplit(' ').next().map(|port| port.trim_end_matches('.').to_owned());
        let url = format!("http://127.0.0.1:{}/session", port.expect("a port"));
        // It must not wait for who reads its log.
        std::thread::spawn(move || lines.for_each(drop));
        let config = Agent::config_builder().http_status_as_error(false);
        let agent: Agent = config.timeout_global(Some(WAIT * 2)).build().into();
        let mut browser = Self { driver, session: url, agent };
        let size = format!("--window-size={width},{height}");
        // A container has no user namespaces, and little shared memory.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", &size];
        let options = json!({
            "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": { "args": arguments },
                "goog:loggingPrefs": { "browser": "ALL" },
            } },
        });
        let started = browser.command("", &options);
        let id = started["sessionId"].as_str().unwrap_or_else(|| panic!("{started}"));
        browser.session = format!("{}/{id}", browser.session);
        Some(browser)
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({ "url": url }));
    }

    /// What JavaScript gives, the body of a function.
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until JavaScript gives something true, and gives it.
    ///
    /// # Panics
    /// If it does not in a minute.
    pub fn wait(&self, expression: &str) -> Value {
        let deadline = Instant::now() + WAIT;
        loop {
            let value = self.run(&format!("return {expression}"));
            if value.as_bool() != Some(false) && !value.is_null() && value != "" {
                return value;
            }
            let shown = || self.run("return document.body.innerText");
            assert!(Instant::now() < deadline, "not true: {expression}\n{}", shown());
        }
    }

    /// Types into what the selector finds; the keys go where a person's would.
    ///
    /// # Panics
    /// If nothing is found.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.on(selector, "value", &json!({ "text": text }));
    }

    /// Clicks on what the selector finds.
    ///
    /// # Panics
    /// If nothing is found, or something else lies over it.
    pub fn click(&self, selector: &str) {
        self.on(selector, "click", &json!({}));
    }

    /// What the page has complained of: scripts that failed, and requests that its policy forbids.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().into_iter().flatten();
        let severe = entries.filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].to_string()).collect()
    }

    /// Keeps a picture of the page as `NAME.png`, where the environment says in which folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn picture(&self, name: &str) {
        let Some(folder) = env::var_os("UMBEL_TEST_PICTURES").map(PathBuf::from) else {
            return;
        };
        let url = format!("{}/screenshot", self.session);
        let taken = self.agent.get(&url).call().expect("chromedriver answers");
        let taken: Value = taken.into_body().read_json().expect("it answers JSON");
        let text = taken["value"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        fs::write(folder.join(format!("{name}.png")), bytes).expect("the folder is there");
    }

    /// Has the page seen in light or in dark.
    pub fn prefer(&self, scheme: &str) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let parameters = json!({ "features": feature });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": parameters });
        self.command("/goog/cdp/execute", &command);
    }

    /// Makes the page this wide, as a phone's is.
    pub fn resize(&self, width: u32, height: u32) {
        let parameters =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": true });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": parameters });
        self.command("/goog/cdp/execute", &command);
    }

    fn on(&self, selector: &str, action: &str, body: &Value) {
        let found =
            self.command("/element", &json!({ "using": "css selector", "value": selector }));
        let id = found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}"));
        self.command(&format!("/element/{id}/{action}"), body);
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let response = self.agent.post(&url).send(body.to_string()).expect("chromedriver answers");
        let is_good = response.status().is_success();
        let mut answer: Value = response.into_body().read_json().expect("it answers JSON");
        assert!(is_good, "{path} {body}: {answer}");
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to, the browser ends with its driver; killed alone, the driver would leave it.
        let _asked = self.agent.delete(&self.session).call();
        let _ended = self.driver.kill();
        let _waited = self.driver.wait();
    }
}
