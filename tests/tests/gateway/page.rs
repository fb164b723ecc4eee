//! The page of a gateway, in a browser, before a swarm of four servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use umbel_tests::browser::{Browser, ENTER, ESCAPE};
use umbel_tests::gateway::Gateway;
use umbel_tests::swarm::{Server, serve};

const MODEL: &str = "smollm2-135m";

/// How the last answer begins, as it is shown.
const ANSWER: &str = "document.querySelector('#turns li:last-child.assistant .said')?.textContent";
const STATUS: &str = "document.querySelector('#status').textContent";
const COVERAGE: &str = "document.querySelector('#coverage').textContent";
/// Whether the picture of the swarm is shown as an old one.
const STALE: &str = "return document.querySelector('#swarm').classList.contains('stale')";

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
    let mut gateway = Gateway::start(&["--join", servers[0].address()]);
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
    who_reads_what_was_said_goes_on_reading(&browser);
    // It ends by itself or at the limit, whichever comes first.
    browser.wait(&format!("{STATUS}.startsWith('The answer is c')"));
    browser.run("document.querySelector('[name=max_tokens]').value = '3'");
    browser.click("#again");
    let cut = "The answer is cut after 3 tokens: raise \"Most tokens\"";
    browser.wait(&format!("{STATUS}.startsWith('{cut}')"));

    narrow_and_dark(&browser);
    // The only server of the last blocks leaves, and says so.
    assert!(servers.pop().unwrap().terminate().status.success());
    browser
        .wait("document.querySelector('#events').textContent.includes('is about to leave 20..30')");
    let unserved = format!("{COVERAGE}.includes('Nobody serves 20, 21')");
    browser.wait(&unserved);
    what_is_old_is_shown_as_such(&browser, &mut gateway);
    browser.wait(&unserved);
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
    // What the line of state says takes several lines here, and lies over nothing.
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

/// Of a list that is not at its end the reader sees the same place, however the answer grows.
fn who_reads_what_was_said_goes_on_reading(browser: &Browser) {
    browser.run("document.querySelector('#turns').style.maxHeight = '8rem'");
    browser.run("document.querySelector('#turns').scrollTop = 1");
    let length = browser.run(&format!("return {ANSWER}.length"));
    browser.wait(&format!("{ANSWER}.length > {length}"));
    assert_eq!(browser.run("return document.querySelector('#turns').scrollTop"), 1);
    // Who goes back to the end follows the answer again.
    browser.run("document.querySelector('#turns').scrollTop = 1e6");
    let length = browser.run(&format!("return {ANSWER}.length"));
    browser.wait(&format!("{ANSWER}.length > {length} + 200"));
    browser.wait(
        "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight < 2)(
            document.querySelector('#turns'))",
    );
    browser.run("document.querySelector('#turns').style.maxHeight = ''");
}

/// While the gateway stands still, what was seen last is shown as old.
fn what_is_old_is_shown_as_such(browser: &Browser, gateway: &mut Gateway) {
    gateway.process_mut().freeze();
    browser.wait(&format!("{COVERAGE}.startsWith('No picture of the swarm since ')"));
    assert_eq!(browser.run(STALE), true);
    gateway.process_mut().thaw();
    browser.wait(&format!("!{COVERAGE}.startsWith('No picture')"));
    assert_eq!(browser.run(STALE), false);
}

/// A question to a gateway that is gone fails, says so, and leaves the conversation as it was.
fn what_fails_is_said(browser: &Browser, gateway: Gateway) {
    let before = browser.run(&format!("return {ANSWER}"));
    drop(gateway);
    let fails = || {
        browser.wait(&format!("{STATUS}.startsWith('The answer failed')"));
        assert_eq!(browser.run(&format!("return {ANSWER}")), before);
    };
    browser.type_into("#question", "Are you there?");
    browser.click("#send");
    fails();
    let typed = "return document.querySelector('#question').value";
    assert_eq!(browser.run(typed), "Are you there?", "it can be asked again");
    browser.click("#again");
    fails();
    assert_eq!(browser.run(typed), "Are you there?");
    let no_picture = format!("{COVERAGE}.startsWith('No picture')");
    browser.wait(&no_picture);
    // What is drawn anew is as old.
    browser.run("dispatchEvent(new Event('resize'))");
    assert_eq!(browser.run(&format!("return {no_picture}")), true);
    assert_eq!(browser.run(STALE), true);
    assert_eq!(browser.run("return document.querySelector('#send').disabled"), false);
}
