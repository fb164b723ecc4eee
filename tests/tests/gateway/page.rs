//! The page of a gateway, in a browser, before a swarm of four servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use umbel_tests::browser::{Browser, ENTER, ESCAPE};
use umbel_tests::gateway::Gateway;
use umbel_tests::swarm::{Server, serve};

const MODEL: &str = "smollm2-135m";

/// How the last answer begins, as it is shown.
const ANSWER: &str = "document.querySelector('#turns li:last-child.assistant .said')?.textContent";
const STATUS: &str = "document.querySelector('#status').textContent";

fn swarm() -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for blocks in ["0..10", "10..20", "10..20", "20..30"] {
        let join = servers.first().map(|first| first.address().to_owned());
        let mut arguments = vec![MODEL, "--blocks", blocks];
        arguments.extend(join.iter().flat_map(|address| ["--join", address]));
        servers.push(serve(&arguments));
    }
    servers
}

/// The server whose name ends so.
fn position(servers: &[Server], end: &str) -> usize {
    servers.iter().position(|server| server.address().ends_with(end)).unwrap()
}

#[test]
fn a_chat_streams_stops_goes_on_after_a_failure_and_shows_the_swarm() {
    let Some(browser) = Browser::start(1280, 1250) else {
        eprintln!("not tried: there is no chromedriver");
        return;
    };
    let mut servers = swarm();
    let gateway = Gateway::start(&["--join", servers[0].address()]);
    browser.open(&gateway.url("/"));
    browser.wait("document.querySelectorAll('#servers tbody tr').length == 4");
    assert_eq!(browser.run("return document.querySelector('#model').textContent"), MODEL);
    let counts = "return [...document.querySelectorAll('#strip .count')].map(
        (one) => one.textContent).join(' ')";
    assert_eq!(browser.run(counts), "1 2 1", "of 0..10, of 10..20, and of 20..30");
    browser.picture("page-empty");

    // By the keyboard alone: the settings, a question, the answer, and a stop in its middle.
    browser.click("#settings summary");
    browser.run("document.querySelector('[name=temperature]').value = '0'");
    browser.run("document.querySelector('[name=max_tokens]').value = '600'");
    browser.type_into("#question", "Write a long essay about the sea.");
    browser.type_into("#question", ENTER);
    let first = browser.wait(&format!("({ANSWER} ?? '').length > 20 && {ANSWER}"));
    let more =
        browser.wait(&format!("{ANSWER}.length > {} && {ANSWER}", first.as_str().unwrap().len()));
    assert!(more.as_str().unwrap().starts_with(first.as_str().unwrap()), "it streams");
    browser.type_into("#question", ESCAPE);
    browser.wait(&format!("{STATUS}.startsWith('Stopped after')"));
    assert_eq!(browser.run("return document.querySelector('#stop').disabled"), true);

    // Once more, and a server of the route is killed in the middle.
    browser.click("#again");
    browser.wait(&format!("({ANSWER} ?? '').length > 40"));
    browser.wait("document.querySelectorAll('#strip .hop').length == 3");
    let hop = "document.querySelector('#hops tbody tr:nth-child(2) td').textContent";
    let middle = browser.wait(hop).as_str().unwrap().trim_start_matches('…').to_owned();
    browser.picture("page-light");
    servers.remove(position(&servers, &middle)).kill();
    let failover = browser.wait("document.querySelector('#events .failover')?.textContent");
    assert!(failover.as_str().unwrap().contains(&middle), "{failover}");
    browser.wait(&format!("{ANSWER}.length > 300"));
    assert_ne!(browser.wait(hop), middle, "another is in its place");
    browser.picture("page-failover");
    browser.wait(&format!("{STATUS}.startsWith('The answer is complete')"));

    narrow_and_dark(&browser);
    // The only server of the last blocks leaves, and says so.
    assert!(servers.pop().unwrap().terminate().status.success());
    browser
        .wait("document.querySelector('#events').textContent.includes('is about to leave 20..30')");
    browser
        .wait("document.querySelector('#coverage').textContent.includes('Nobody serves 20, 21')");
    what_fails_is_said(&browser, gateway);
    // What the page asks of a gateway that has ended, or that ends meanwhile, fails.
    let ended = ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"];
    let complaints = browser.complaints();
    let of_page = complaints.iter().filter(|line| !ended.iter().any(|why| line.contains(why)));
    assert_eq!(of_page.collect::<Vec<_>>(), [""; 0]);
}

/// On a phone one view is shown at a time, nothing is wider than the screen, and colours follow the
/// system.
fn narrow_and_dark(browser: &Browser) {
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let light = browser.run(ground);
    browser.prefer("dark");
    assert_ne!(browser.run(ground), light);
    browser.resize(360, 740);
    browser.wait("innerWidth == 360");
    let fits = "return [document.documentElement, ...document.querySelectorAll('section')].every(
        (part) => part.scrollWidth <= part.clientWidth)";
    let shown = |view: &str| {
        browser.run(&format!("return document.querySelector('#{view}').offsetParent !== null"))
    };
    assert_eq!((shown("chat"), shown("swarm")), (true.into(), false.into()));
    assert_eq!(browser.run(fits), true);
    // What the line of state says takes two lines here, and lies over nothing.
    let whole = "const status = document.querySelector('#status');
        return status.scrollHeight <= status.clientHeight";
    assert_eq!(browser.run(whole), true);
    assert_eq!(browser.run("return document.querySelector('header').offsetHeight < 64"), true);
    browser.picture("page-phone-chat");
    browser.click("#show-swarm");
    assert_eq!((shown("chat"), shown("swarm")), (false.into(), true.into()));
    assert_eq!(browser.run(fits), true);
    browser.picture("page-phone-swarm");
    browser.click("#show-chat");
    named_controls(browser);
}

/// Every control has a name, what a screen reader is to hear is marked, and the first link leads past
/// the rest to the question.
fn named_controls(browser: &Browser) {
    let nameless = "return [...document.querySelectorAll('button, input, textarea')].filter(
        (one) => !one.textContent.trim() && !one.labels?.length && !one.ariaLabel).length";
    assert_eq!(browser.run(nameless), 0);
    let described = browser.run("return document.querySelector('#strip desc').textContent");
    assert!(described.as_str().unwrap().contains("for 0..10, then"), "{described}");
    assert_eq!(browser.run("return document.querySelector('a, button').className"), "skip");
    browser.type_into(".skip", ENTER);
    browser.wait("document.activeElement.id == 'question'");
}

/// A question to a gateway that is gone fails, and says so.
fn what_fails_is_said(browser: &Browser, gateway: Gateway) {
    drop(gateway);
    browser.type_into("#question", "Are you there?");
    browser.click("#send");
    browser.wait(&format!("{STATUS}.startsWith('The answer failed')"));
    browser.wait("document.querySelector('#coverage').textContent.startsWith('No picture')");
    assert_eq!(browser.run("return document.querySelector('#send').disabled"), false);
}
