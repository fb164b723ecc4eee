//! Which crate may depend on which: the table of `ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::json;

/// A crate of ours, and what it may depend on.
struct Rule {
    name: &'static str,
    /// Of our own crates, directly, for whatever purpose.
    may_use: &'static [&'static str],
    /// Of all crates, over any number of others; tests and build scripts do not count.
    never_reaches: &'static [&'static str],
}

/// What no pure crate reaches: runtimes, sockets, files, and the system's randomness and clock.
const IMPURE: [&str; 19] = [
    "async-std",
    "candle-core",
    "chrono",
    "futures-timer",
    "getrandom",
    "hyper",
    "libp2p",
    "memmap2",
    "mio",
    "quinn",
    "rand",
    "sled",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "umbel-engine",
    "umbel-shard",
];

const RULES: [Rule; 10] = [
    Rule { name: "umbel-protocol", may_use: &[], never_reaches: &IMPURE },
    Rule { name: "umbel-coordinator", may_use: &["umbel-protocol"], never_reaches: &IMPURE },
    Rule {
        name: "umbel-simnet",
        may_use: &["umbel-coordinator", "umbel-protocol"],
        never_reaches: &IMPURE,
    },
    Rule {
        name: "umbel-shard",
        may_use: &["umbel-protocol"],
        never_reaches: &["async-std", "libp2p", "quinn", "smol", "tokio"],
    },
    Rule {
        name: "umbel-engine",
        may_use: &["umbel-protocol", "umbel-shard"],
        never_reaches: &["async-std", "libp2p", "quinn", "smol", "tokio", "umbel-coordinator"],
    },
    Rule {
        name: "umbel-net",
        may_use: &["umbel-protocol"],
        never_reaches: &["umbel-coordinator", "umbel-engine", "umbel-shard"],
    },
    Rule {
        name: "umbel-client",
        may_use: &[
            "umbel-coordinator",
            "umbel-engine",
            "umbel-net",
            "umbel-protocol",
            "umbel-shard",
        ],
        never_reaches: &["umbel-node", "umbel-simnet"],
    },
    Rule {
        name: "umbel-node",
        may_use: &[
            "umbel-client",
            "umbel-coordinator",
            "umbel-engine",
            "umbel-net",
            "umbel-protocol",
            "umbel-shard",
        ],
        never_reaches: &["umbel-simnet"],
    },
    Rule {
        name: "umbel-tests",
        may_use: &[
            "umbel-client",
            "umbel-coordinator",
            "umbel-engine",
            "umbel-net",
            "umbel-node",
            "umbel-protocol",
            "umbel-shard",
            "umbel-simnet",
        ],
        never_reaches: &[],
    },
    Rule {
        name: "umbel-python",
        may_use: &["umbel-client", "umbel-engine", "umbel-net", "umbel-protocol", "umbel-shard"],
        never_reaches: &["umbel-node", "umbel-simnet"],
    },
];

/// What `cargo metadata` says, as far as it matters here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
}

/// Who depends on whom, by name.
#[derive(Default)]
struct Graph {
    members: BTreeSet<String>,
    /// For whatever purpose, tests among them.
    direct: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn new(metadata: &Metadata) -> Self {
        let names: BTreeMap<_, _> =
            metadata.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
        let name = |id: &str| (*names.get(id).expect("each id is of a package")).to_owned();
        let members = metadata.workspace_members.iter().map(|id| name(id)).collect();
        let mut graph = Self { members, ..Self::default() };
        for node in &metadata.resolve.nodes {
            for dependency in &node.deps {
                graph.direct.entry(name(&node.id)).or_default().insert(name(&dependency.pkg));
            }
        }
        graph
    }

    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for member in &self.members {
            let Some(rule) = RULES.iter().find(|rule| rule.name == member) else {
                complaints.push(format!("{member} is in no rule"));
                continue;
            };
            for target in self.direct.get(member).into_iter().flatten() {
                if self.members.contains(target) && !rule.may_use.contains(&target.as_str()) {
                    complaints.push(format!("{member} may not use {target}"));
                }
            }
        }
        complaints
    }
}

/// What of the crates that `tree` lists, one a line, `rule` does not allow.
fn reached_complaints(rule: &Rule, tree: &str) -> Vec<String> {
    let names: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let forbidden = rule.never_reaches.iter().filter(|name| names.contains(**name));
    let Rule { name, .. } = rule;
    forbidden
        .map(|target| {
            format!("{name} may not reach {target}: see `cargo tree -p {name} -i {target}`")
        })
        .collect()
}

/// What cargo prints.
fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    let output = command.args(arguments).current_dir(super::files::root()).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`cargo fetch` may help: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// The dependencies of this workspace on this machine's platform: those of other platforms need
/// not have been downloaded.
fn metadata() -> Metadata {
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let arguments = ["metadata", "--format-version", "1", "--offline", "--filter-platform", host];
    serde_json::from_str(&cargo(&arguments)).unwrap()
}

/// Everything that is compiled into a crate when it is built alone: built with others, it shares
/// the features that they ask of a common dependency.
fn tree(name: &str) -> String {
    let edges = ["--edges", "normal", "--prefix", "none", "--format", "{p}"];
    cargo(&[&["tree", "--offline", "--package", name], &edges[..]].concat())
}

#[test]
fn crates_depend_on_each_other_as_the_architecture_says() {
    let graph = Graph::new(&metadata());
    assert_eq!(graph.members.len(), RULES.len());
    let complaints = graph.complaints();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn crates_reach_nothing_that_they_must_not() {
    let trees: Vec<_> = RULES.iter().map(|rule| (rule, tree(rule.name))).collect();
    // Were the trees empty, nothing could be found in them.
    assert!(trees.iter().any(|(_, tree)| tree.lines().any(|line| line.starts_with("tokio v"))));
    let complaints: Vec<_> =
        trees.iter().flat_map(|(rule, tree)| reached_complaints(rule, tree)).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The crates of the table in a page, and what each may depend on.
fn table(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut rows = BTreeMap::<String, BTreeSet<String>>::new();
    for line in page.lines().filter(|line| line.contains("(`umbel-")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, uses, ..] = cells[..] else {
            continue;
        };
        let name = name.split("(`").nth(1).and_then(|name| name.split('`').next()).unwrap();
        let above: BTreeSet<_> = rows.keys().cloned().collect();
        let package = |name: &str| format!("umbel-{name}");
        let uses = match uses.strip_prefix("all above but ") {
            Some(name) => above.into_iter().filter(|above| *above != package(name)).collect(),
            None if uses == "all" => above,
            None if uses == "nothing" => BTreeSet::new(),
            None => uses.split(", ").map(package).collect(),
        };
        rows.insert(name.to_owned(), uses);
    }
    rows
}

#[test]
fn the_table_of_the_architecture_says_the_same() {
    let page = std::fs::read_to_string(super::files::root().join("ARCHITECTURE.md")).unwrap();
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let rules = RULES.iter().map(|rule| (rule.name.to_owned(), owned(rule.may_use))).collect();
    assert_eq!(table(&page), rules);
    let other = page.replace("| nothing |", "| shard |");
    assert_ne!(table(&other), rules, "another table is another");
}

/// A workspace with these edges.
fn example(edges: &[(&str, &str)]) -> Vec<String> {
    let names: BTreeSet<&str> = edges.iter().flat_map(|&(a, b)| [a, b]).collect();
    let packages: Vec<_> = names.iter().map(|name| json!({"id": name, "name": name})).collect();
    let members: Vec<_> = names.iter().filter(|name| name.starts_with("umbel-")).collect();
    let node = |(from, to): &(&str, &str)| json!({"id": from, "deps": [{"pkg": to}]});
    let nodes: Vec<_> = edges.iter().map(node).collect();
    let metadata = json!({
        "packages": packages, "workspace_members": members, "resolve": {"nodes": nodes},
    });
    Graph::new(&serde_json::from_value(metadata).unwrap()).complaints()
}

#[test]
fn forbidden_edges_are_found() {
    assert_eq!(example(&[("umbel-client", "umbel-net"), ("umbel-net", "tokio")]), [""; 0]);
    let server = [("umbel-client", "umbel-net"), ("umbel-client", "umbel-node")];
    assert_eq!(example(&server), ["umbel-client may not use umbel-node"]);
    let unknown = [("umbel-new", "umbel-protocol")];
    assert_eq!(example(&unknown), ["umbel-new is in no rule"]);
}

#[test]
fn forbidden_crates_are_found() {
    let protocol = &RULES[0];
    let tree = "umbel-protocol v0.1.0 (/a/protocol)\nbytes v1.0.0\ntokio-util v0.7.0\n";
    assert_eq!(reached_complaints(protocol, tree), [""; 0]);
    let tree = format!("{tree}tokio v1.0.0 (*)\n");
    assert_eq!(
        reached_complaints(protocol, &tree),
        ["umbel-protocol may not reach tokio: see `cargo tree -p umbel-protocol -i tokio`"]
    );
}
