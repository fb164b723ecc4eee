//! Files, flags and what becomes of both.

use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;
use crate::args::{AdapterCommand, Command as Asked, ServeArguments};

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn typed(text: &str, words: &[&str]) -> Result<Settings, SettingsError> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    let words = [&["umbel", "--config", path], words].concat();
    read(words.iter().map(OsString::from).collect())
}

fn serve(text: &str, words: &[&str]) -> ServeArguments {
    let read = typed(text, &[&["serve"], words].concat());
    let arguments = read.unwrap_or_else(|error| panic!("{error}")).arguments;
    let Asked::Serve(arguments) = arguments.command else { panic!("{arguments:?}") };
    *arguments
}

const FILE: &str = "
    log = 'debug'
    threads = 3
    [serve]
    model = 'a-model'
    block-count = 10
    join = ['/ip4/10.0.0.7/tcp/1', '/ip4/10.0.0.8/tcp/1']
    no-mdns = true
    no-share = false
    [chat]
    temperature = 0.5
    system = '--be brief'
";

#[test]
fn a_file_says_what_flags_say() {
    let arguments = serve(FILE, &[]);
    assert_eq!((arguments.model.name(), arguments.block_count), ("a-model", Some(10)));
    assert_eq!((arguments.join.len(), arguments.no_mdns, arguments.no_share), (2, true, false));
    let all = typed(FILE, &["chat", "--local"]).unwrap().arguments;
    assert_eq!((all.log.as_deref(), all.threads), (Some("debug"), Some(3)));
    let Asked::Chat(chat) = all.command else { panic!() };
    assert_eq!(
        (chat.sampling.temperature, chat.system.as_deref()),
        (Some(0.5), Some("--be brief"))
    );
}

#[test]
fn what_was_typed_takes_the_place_of_what_the_file_says() {
    let arguments = serve(FILE, &["--block-count", "4", "--join", "/ip4/10.0.0.9/tcp/1"]);
    assert_eq!((arguments.block_count, arguments.join.len()), (Some(4), 1));
    let arguments = serve(FILE, &["--blocks", "0..2"]);
    assert_eq!(arguments.block_count, None, "--blocks excludes it");
    assert_eq!(serve(FILE, &["another-model"]).model.name(), "another-model");
}

#[test]
fn a_file_can_give_what_a_command_cannot_do_without() {
    let text = "[status]\njoin = ['/ip4/10.0.0.7/tcp/1']";
    let Asked::Status(status) = typed(text, &["status"]).unwrap().arguments.command else {
        panic!()
    };
    assert_eq!(status.join.len(), 1);
    assert!(typed("", &["status"]).is_err());
}

/// The peers of a private swarm speak TCP alone, and refuse to start with an address of QUIC.
#[test]
fn the_file_for_operators_has_a_line_for_private_swarms() {
    let text = include_str!("../../../deploy/umbel.toml");
    let listens = |text: &str| {
        let addresses = serve(text, &["--swarm", "ours.key"]).listen;
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(listens(text), ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001"]);
    let private = text.replace("\nlisten", "\n# open").replace("\n# listen", "\nlisten");
    assert_eq!(listens(&private), ["/ip4/0.0.0.0/tcp/4001"]);
}

#[test]
fn mistakes_in_a_file_are_found_and_named() {
    for (text, said) in [
        ("[serve]\ncolour = 1", "colour is no setting"),
        ("colour = 1", "colour is no setting"),
        ("[paint]\ncolour = 1", "[paint] is no command"),
        ("[serve]\nno-mdns = 3", "true or false"),
        ("[serve]\nblock-count = [1, 2]", "one value"),
        ("[serve]\nblock-count = 1979-05-27", "a text or a number"),
        ("[serve]\nblock-count = 'many'", "invalid value 'many'"),
        ("[serve]\nblock-count = 1\nblocks = '0..2'", "cannot be used with"),
        ("config = 'other.toml'", "config is no setting"),
        ("[serve", "TOML parse error"),
    ] {
        let error = typed(text, &["serve"]).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let missing = ["umbel", "--config", "nowhere.toml", "serve"].map(OsString::from).to_vec();
    assert!(read(missing).unwrap_err().to_string().contains("nowhere.toml"));
}

#[test]
fn what_is_printed_can_be_read_and_says_the_same() {
    let words = ["--kv-tokens", "100", "--announce", "/ip4/10.0.0.1/tcp/1", "--print-config"];
    let printed = typed(FILE, &[&["serve"], &words[..]].concat()).unwrap().printed.unwrap();
    for line in [
        "log = \"debug\" # the file",
        "block-count = 10 # the file",
        "kv-tokens = 100 # a flag",
        "drain-timeout = 20 # by default",
        "no-mdns = true # the file",
        "no-share = false # by default",
        "model = \"a-model\" # the file",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    let again = typed(&printed, &["serve", "--print-config"]).unwrap().printed.unwrap();
    let values = |text: &str| -> toml::Table { toml::from_str(text).unwrap() };
    assert_eq!(values(&again), values(&printed));
    let positional = typed("", &["serve", "my-model", "--print-config"]).unwrap().printed.unwrap();
    assert!(positional.contains("model = \"my-model\" # a flag"), "{positional}");
}

#[test]
fn questions_are_answered_without_a_file() {
    let ask = |words: &[&str]| read(words.iter().map(OsString::from).collect()).unwrap_err();
    let SettingsError::Arguments(help) = ask(&["umbel", "serve", "--help"]) else { panic!() };
    assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
    let SettingsError::Arguments(error) = ask(&["umbel", "--config", "nowhere", "--help"]) else {
        panic!()
    };
    assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp);
}

#[test]
fn a_command_of_a_command_has_a_table_below_that_of_the_other() {
    let text =
        "[adapter.publish]\njoin = ['/ip4/10.0.0.7/tcp/1']\nleave = true\n[adapter]\nthreads = 3";
    let words = ["adapter", "publish", "chats"];
    let arguments = typed(text, &words).unwrap().arguments;
    assert_eq!(arguments.threads, Some(3));
    let Asked::Adapter(adapter) = arguments.command else { panic!() };
    let AdapterCommand::Publish(publish) = adapter.what;
    assert_eq!((publish.join.len(), publish.leave), (1, true));

    let printed =
        typed(text, &[&words[..], &["--print-config"]].concat()).unwrap().printed.unwrap();
    for line in ["[adapter.publish]", "leave = true # the file"] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    let again = typed(&printed, &[&words[..], &["--print-config"]].concat()).unwrap().printed;
    let values = |text: &str| -> toml::Table { toml::from_str(text).unwrap() };
    assert_eq!(values(&again.unwrap()), values(&printed));

    for (text, said) in [
        ("[adapter]\njoin = ['/ip4/10.0.0.7/tcp/1']", "see `umbel adapter --help`"),
        (
            "[adapter.paint]\ncolour = 1",
            "[adapter.paint] is no command; see `umbel adapter --help`",
        ),
        ("[serve.publish]\ncolour = 1", "[serve.publish] is no command"),
    ] {
        let error = typed(text, &words).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn what_stands_behind_two_hyphens_leaves_the_file_in_force() {
    let arguments = typed(FILE, &["chat", "--local", "--", "my-model"]).unwrap().arguments;
    let Asked::Chat(chat) = arguments.command else { panic!() };
    assert_eq!((chat.model.name(), chat.sampling.temperature), ("my-model", Some(0.5)));
}

#[test]
fn a_flag_that_may_have_a_value_may_be_true_as_well() {
    let words = ["train", "--data", "x", "--out", "y", "--join", "/ip4/10.0.0.7/tcp/1"];
    let together = |text: &str| {
        let Asked::Train(train) = typed(text, &words).unwrap().arguments.command else { panic!() };
        train.together.together.map(|name| name.map(|name| name.to_string()))
    };
    assert_eq!(together("[train]\ntogether = true"), Some(None));
    assert_eq!(together("[train]\ntogether = false"), None);
    assert_eq!(together("[train]\ntogether = 'letters'"), Some(Some("letters".to_owned())));
    let error = typed("[train]\nrank = true", &words).unwrap_err().to_string();
    assert!(error.contains("a text or a number"), "{error}");
    let words = [&words[..], &["--together", "--print-config"]].concat();
    let printed = typed("", &words).unwrap().printed.unwrap();
    assert!(printed.contains("together = true # a flag"), "{printed}");
}

#[test]
fn a_path_that_begins_with_a_tilde_is_in_the_home_folder() {
    let home = crate::config::home().unwrap();
    let text = "cache-dir = '~/a folder'\n[chat]\nmodel = '~'\nsystem = '~/is no path'";
    let arguments = typed(text, &["chat", "--local"]).unwrap().arguments;
    assert_eq!(arguments.cache_dir, Some(home.join("a folder")));
    let Asked::Chat(chat) = arguments.command else { panic!() };
    assert_eq!(chat.model.name(), home.to_str().unwrap());
    assert_eq!(chat.system.as_deref(), Some("~/is no path"));
    let other = typed("cache-dir = '~x'", &["chat", "--local"]).unwrap().arguments.cache_dir;
    assert_eq!(other, Some(PathBuf::from("~x")));
}
