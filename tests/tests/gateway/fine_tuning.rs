//! Adapters that a gateway learns for those who ask: files, jobs, models, and whose they are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_tests::gateway::Gateway;
use umbel_tests::swarm::{Server, checkpoint, serve};

const MODEL: &str = "smollm2-135m";

/// How long a job may take on a machine that runs many tests at once.
const JOB_TIMEOUT: Duration = Duration::from_secs(240);

/// The Python in which the official clients are installed, where there is one: `.ci/run` makes it.
const PYTHON: Option<&str> = option_env!("UMBEL_TEST_PYTHON");

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What somebody asks for, with a key or without.
struct Asker<'a> {
    gateway: &'a Gateway,
    key: &'a str,
    /// What the gateway serves.
    model: String,
}

impl<'a> Asker<'a> {
    fn new(gateway: &'a Gateway, key: &'a str) -> Self {
        let mut asker = Self { gateway, key, model: String::new() };
        let (_, models) = asker.get("/v1/models");
        models["data"][0]["id"].as_str().unwrap().clone_into(&mut asker.model);
        asker
    }

    fn send(&self, method: &str, path: &str, (kind, body): (&str, &[u8])) -> (u16, Value) {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent = config.build().into();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(self.gateway.url(path))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", kind)
            .body(body.to_vec())
            .unwrap();
        let response = agent.run(request).unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().read_to_string().unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, ("application/json", b""))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, ("application/json", body.to_string().as_bytes()))
    }

    /// Sends a form of these fields.
    fn upload(&self, fields: &[(&str, &str)]) -> (u16, Value) {
        let mut form = String::new();
        for (name, text) in fields {
            let file = if *name == "file" { "; filename=\"a.jsonl\"" } else { "" };
            form += &format!(
                "--x\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{text}\r\n"
            );
        }
        form += "--x--\r\n";
        self.send("POST", "/v1/files", ("multipart/form-data; boundary=x", form.as_bytes()))
    }

    /// The id of a file of these lines.
    fn file(&self, lines: &str) -> String {
        let (status, file) = self.upload(&[("purpose", "fine-tune"), ("file", lines)]);
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    fn ask_for_job(&self, file: &str, more: &Value) -> (u16, Value) {
        let mut body = json!({ "model": self.model, "training_file": file });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/fine_tuning/jobs", &body)
    }

    fn begin(&self, file: &str, more: &Value) -> Value {
        let (status, job) = self.ask_for_job(file, more);
        assert_eq!(status, 200, "{job}");
        job
    }

    fn cancel(&self, job: &Value) {
        let path = format!("/v1/fine_tuning/jobs/{}/cancel", job["id"].as_str().unwrap());
        let (status, cancelled) = self.post(&path, &json!({}));
        assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")), "{cancelled}");
    }

    fn wait(&self, job: &Value) -> Value {
        let path = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
        let deadline = Instant::now() + JOB_TIMEOUT;
        loop {
            let (_, job) = self.get(&path);
            if job["finished_at"].is_u64() {
                return job;
            }
            assert!(Instant::now() < deadline, "{job}");
            std::thread::yield_now();
        }
    }
}

fn texts() -> String {
    let text = |n: u32| json!({ "token_ids": (0..12).map(|i| (n * 31 + i * 17) % 200).collect::<Vec<u32>>() });
    (0..6).map(|number| format!("{}\n", text(number))).collect()
}

#[test]
fn what_somebody_has_learned_is_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let (model, kept) = (checkpoint("llama"), folder.path().join("kept"));
    let keys = folder.path().join("keys.toml");
    let key = |name: &str| format!("[[key]]\nname = '{name}'\nkey = 'the-key-of-{name}-here'\n");
    std::fs::write(&keys, key("ann") + &key("bob")).unwrap();
    let server = serve(&[&model]);
    let address = server.address().to_owned();
    let arguments = [
        "--model",
        &model,
        "--join",
        &address,
        "--keys",
        keys.to_str().unwrap(),
        "--fine-tuning",
        kept.to_str().unwrap(),
    ];
    let gateway = Gateway::start(&arguments);
    let ann = Asker::new(&gateway, "the-key-of-ann-here");
    let bob = Asker::new(&gateway, "the-key-of-bob-here");
    refusals(&ann);

    let file = ann.file(&texts());
    let (status, _) = bob.get(&format!("/v1/files/{file}"));
    assert_eq!(status, 404);
    let more = json!({ "hyperparameters": { "n_epochs": 2 } });
    let job = validated(&ann, ann.wait(&ann.begin(&file, &with_validation(&ann, more))));
    let name = job["fine_tuned_model"].as_str().unwrap();
    let ask = |who: &Asker, model: &str| {
        let body =
            json!({ "model": model, "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0 });
        who.post("/v1/completions", &body)
    };
    let (status, answer) = ask(&ann, name);
    assert_eq!((status, &answer["model"]), (200, &json!(name)), "{answer}");
    assert_eq!(ask(&bob, name).0, 404);
    assert_eq!(ask(&bob, &bob.model).0, 200);
    let path = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!((bob.get(&path).0, bob.get(&format!("{path}/events")).0), (404, 404));
    assert_eq!(bob.get("/v1/fine_tuning/jobs").1["data"], json!([]));
    assert_eq!(ann.post(&format!("{path}/cancel"), &json!({})).0, 400, "it is over");

    failing(&ann, server);
    // A gateway that takes its place has what it had.
    let stopped = gateway.into_process().terminate().unwrap();
    assert!(stopped.status.success(), "{}", stopped.stderr);
    let server = serve(&[&model]);
    let arguments =
        [&["--model", &model, "--join", server.address()][..], &arguments[4..]].concat();
    let gateway = Gateway::start(&arguments);
    let ann = Asker::new(&gateway, "the-key-of-ann-here");
    assert_eq!(ask(&ann, name).0, 200);
}

/// A job's fields, with a file for validation: texts that are not learned.
fn with_validation(ann: &Asker<'_>, mut more: Value) -> Value {
    more["validation_file"] = json!(ann.file("{\"token_ids\": [5, 9, 2, 7]}\n"));
    more["hyperparameters"]["batch_size"] = json!(1);
    more
}

/// What has come of a job whose texts were validated with those of a file of their own.
fn validated(ann: &Asker<'_>, job: Value) -> Value {
    assert_eq!(job["status"], "succeeded", "{job}");
    assert!(job["validation_file"].is_string(), "{job}");
    let path = format!("/v1/fine_tuning/jobs/{}/events", job["id"].as_str().unwrap());
    let (_, events) = ann.get(&path);
    let events = events["data"].as_array().unwrap();
    // All six texts are learned, each twice, and none of them goes to the validation.
    assert_eq!(events[0]["data"]["step"], 12, "{events:?}");
    assert_eq!(events[0]["data"]["total_steps"], 12);
    let losses = |name: &str| events.iter().filter(|event| event["data"][name].is_f64()).count();
    assert_eq!(
        (losses("train_loss"), losses("full_valid_loss")),
        (12, 3),
        "before, and each epoch"
    );
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains("training loss") && message.contains("validation loss"), "{message}");
    let result = job["result_files"][0].as_str().unwrap();
    let (_, file) = ann.get(&format!("/v1/files/{result}"));
    assert_eq!(file["purpose"], "fine-tune-results", "{file}");
    let (_, lines) = ann.get(&format!("/v1/files/{result}/content"));
    let lines: Vec<_> = lines.as_str().unwrap().lines().collect();
    assert_eq!((lines[0], lines.len()), ("step,train_loss,valid_loss", 14), "{lines:?}");
    assert!(lines[1].starts_with("0,,") && lines[13].split(',').all(|cell| !cell.is_empty()));
    let body = json!({ "model": ann.model, "training_file": result });
    assert_eq!(ann.post("/v1/fine_tuning/jobs", &body).0, 400, "a result is not learned");
    job
}

/// Jobs that come to nothing: broken lines, a job that is cancelled, a swarm that is gone.
fn failing(ann: &Asker<'_>, server: Server) {
    let broken = ann.wait(&ann.begin(&ann.file("{\"text\": 5}\n"), &json!({})));
    assert_eq!(broken["status"], "failed", "{broken}");
    let message = broken["error"]["message"].as_str().unwrap();
    assert!(message.contains("line 1"), "{message}");
    let long = json!({ "hyperparameters": { "n_epochs": 1_000, "batch_size": 1 } });
    let file = ann.file(&texts());
    let broken = json!({ "validation_file": ann.file("{\"token_ids\": [1, 2]}\n{\"text\": 5}\n") });
    let broken = ann.wait(&ann.begin(&file, &broken));
    let message = broken["error"]["message"].as_str().unwrap();
    assert!(message.contains("line 2"), "{broken}");
    let validated = with_validation(ann, long.clone());
    let (first, second) = (ann.begin(&file, &validated), ann.begin(&file, &long));
    for needed in [&file, validated["validation_file"].as_str().unwrap()] {
        let busy = ann.send("DELETE", &format!("/v1/files/{needed}"), ("application/json", b""));
        assert_eq!(busy.0, 409, "{busy:?}");
    }
    full_queue(ann, &file, &long);
    ann.cancel(&second);
    ann.cancel(&first);
    server.kill();
    let gone = ann.wait(&ann.begin(&file, &long));
    assert_eq!(gone["status"], "failed", "{gone}");
}

/// Behind a job that takes long as many wait as may: whoever cancels one makes room for another.
fn full_queue(ann: &Asker<'_>, file: &str, long: &Value) {
    let mut waiting = Vec::new();
    let (status, refused) = loop {
        let (status, job) = ann.ask_for_job(file, long);
        if status != 200 {
            break (status, job);
        }
        waiting.push(job);
        assert!(waiting.len() <= 16, "more wait than may");
    };
    let message = refused["error"]["message"].as_str().unwrap();
    assert_eq!((status, message), (429, "16 jobs wait already: come back later"));
    ann.cancel(&waiting.pop().unwrap());
    waiting.push(ann.begin(file, long));
    waiting.iter().for_each(|job| ann.cancel(job));
}

fn refusals(ann: &Asker<'_>) {
    for (fields, param) in [
        (&[("file", "{}")][..], "purpose"),
        (&[("purpose", "batch"), ("file", "{}")], "purpose"),
        (&[("purpose", "fine-tune")], "file"),
        (&[("purpose", "fine-tune"), ("file", "")], "file"),
        (&[("purpose", "fine-tune"), ("colour", "red")], "colour"),
    ] {
        let (status, answer) = ann.upload(fields);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let (status, answer) = ann.send("POST", "/v1/files", ("application/json", b"{}"));
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer["error"]["message"].is_string(),
        "no form is refused in the usual shape: {answer}"
    );
    let file = ann.file("{}");
    for (change, param) in [
        (json!({ "training_file": "file-0" }), "training_file"),
        (json!({ "suffix": "a/b" }), "suffix"),
        (json!({ "method": { "type": "dpo" } }), "method"),
        (json!({ "hyperparameters": { "n_epochs": 0 } }), "n_epochs"),
        (json!({ "hyperparameters": { "n_epochs": "many" } }), "n_epochs"),
        (json!({ "hyperparameters": { "batch_size": 1.5 } }), "batch_size"),
        (
            json!({ "hyperparameters": { "learning_rate_multiplier": -1 } }),
            "learning_rate_multiplier",
        ),
        (json!({ "validation_file": "file-0" }), "validation_file"),
    ] {
        let mut body = json!({ "model": ann.model, "training_file": file });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, answer) = ann.post("/v1/fine_tuning/jobs", &body);
        let named = answer["error"]["message"].as_str().unwrap_or_default().contains(param);
        assert_eq!(status, 400, "{change}: {answer}");
        assert!(named || answer["error"]["param"] == param, "{change}: {answer}");
    }
    assert_eq!(ann.get("/v1/fine_tuning/jobs/ftjob-0").0, 404);
    assert_eq!(ann.get("/v1/files/..%2f..%2fkeys.toml").0, 404);
}

/// The name of the model that a job of this number has left: with a slash, as models of the hub have it.
fn learned(number: usize) -> String {
    format!("ft:owner/m:umbel::{number}")
}

/// A folder in which `ann` has as many jobs as a key may have, all with models, the adapters of which
/// somebody has taken away.
fn with_models(kept: &Path, count: usize) {
    std::fs::create_dir_all(kept.join("jobs")).unwrap();
    for number in 0..count {
        let id = format!("ftjob-{number}");
        let job = json!({
            "id": id, "owner": "ann", "model": "owner/m", "training_file": "file-0", "suffix": null,
            "epochs": 1, "batch": 1, "learning_rate_multiplier": 1.0, "seed": 0,
            "status": "succeeded", "created_at": number, "finished_at": number, "error": null,
            "fine_tuned_model": learned(number),
        });
        std::fs::write(kept.join(format!("jobs/{id}.json")), job.to_string()).unwrap();
        std::fs::create_dir(kept.join("jobs").join(id)).unwrap();
    }
}

#[test]
fn a_model_that_was_learned_is_its_owners_to_delete() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, keys) = (folder.path().join("kept"), folder.path().join("keys.toml"));
    with_models(&kept, 100);
    let key = |name: &str| format!("[[key]]\nname = '{name}'\nkey = 'the-key-of-{name}-here'\n");
    std::fs::write(&keys, key("ann") + &key("bob")).unwrap();
    let places = [&keys, &kept].map(|path| path.to_str().unwrap());
    let model = checkpoint("llama");
    let gateway =
        Gateway::start(&[&model, "--local", "--keys", places[0], "--fine-tuning", places[1]]);
    let ann = Asker::new(&gateway, "the-key-of-ann-here");
    let bob = Asker::new(&gateway, "the-key-of-bob-here");

    let body = json!({ "model": learned(3), "prompt": [1, 2, 3], "max_tokens": 1 });
    let (status, answer) = ann.post("/v1/completions", &body);
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("cannot be read"), "{answer}");
    assert!(!answer.to_string().contains(places[1]), "where it lies is not told: {answer}");

    let broken = ann.file("{\"text\": 5}\n");
    let job = json!({ "model": ann.model, "training_file": broken });
    let (status, full) = ann.post("/v1/fine_tuning/jobs", &job);
    assert_eq!(status, 400, "{full}");
    assert!(full["error"]["message"].as_str().unwrap().contains("delete a model"), "{full}");

    let path = format!("/v1/models/{}", learned(3));
    let delete = |who: &Asker<'_>, path: &str| who.send("DELETE", path, ("application/json", b""));
    assert_eq!(delete(&bob, &path).0, 404);
    assert_eq!(delete(&ann, &format!("/v1/models/{}", ann.model)).0, 404, "it was not learned");
    let deleted = json!({ "id": learned(3), "object": "model", "deleted": true });
    assert_eq!(delete(&ann, &path), (200, deleted));
    assert_eq!((delete(&ann, &path).0, ann.get(&path).0), (404, 404), "it is gone");
    let encoded = format!("/v1/models/{}", learned(4).replace('/', "%2F"));
    for path in [&encoded, &format!("/v1/models/{}", learned(4))] {
        assert_eq!(ann.get(path).0, 503, "it is found, and cannot be read: {path}");
    }
    let deleted = json!({ "id": learned(4), "object": "model", "deleted": true });
    assert_eq!(delete(&ann, &encoded), (200, deleted));
    let (_, models) = ann.get("/v1/models");
    assert_eq!(models["data"].as_array().unwrap().len(), 1 + 98);
    let (_, job_of_it) = ann.get("/v1/fine_tuning/jobs/ftjob-3");
    assert_eq!(job_of_it["status"], "succeeded", "the job stays until there is no room");

    // One after the other, each of which takes the place of the one before.
    for _ in 0..3 {
        let failed = ann.wait(&ann.begin(&broken, &json!({})));
        assert_eq!(failed["status"], "failed", "{failed}");
        assert!(!failed.to_string().contains(places[1]), "{failed}");
        let (_, jobs) = ann.get("/v1/fine_tuning/jobs");
        assert_eq!(jobs["data"].as_array().unwrap().len(), 100);
    }
    assert_eq!(ann.get("/v1/fine_tuning/jobs/ftjob-3").0, 404);
    let (mut process, place) = (gateway.into_process(), kept.join("jobs/ftjob-3"));
    let is_told = process.wait_for_stderr(place.to_str().unwrap());
    assert!(is_told, "who runs it is told where it lies: {}", process.stderr());
}

#[test]
fn a_gateway_that_learns_nothing_says_so_whatever_is_sent() {
    let gateway = Gateway::start(&[&checkpoint("llama"), "--local"]);
    let asker = Asker::new(&gateway, "none");
    let form = asker.upload(&[("purpose", "fine-tune"), ("file", "{}")]);
    let no_form = asker.send("POST", "/v1/files", ("application/json", b"{}"));
    for (status, answer) in [form, no_form] {
        assert_eq!(status, 404, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("--fine-tuning DIR"), "{answer}");
    }
}

#[test]
fn the_official_client_has_an_adapter_learned_by_a_swarm() {
    let python = PYTHON.unwrap_or("python3");
    let has_it = Command::new(python).args(["-c", "import openai"]).output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        assert!(PYTHON.is_none(), "{python} has no openai");
        eprintln!("not tried: {python} has no openai");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = std::fs::read_to_string(format!("{ROOT}/fixtures/training/keeper.jsonl")).unwrap();
    let lines: Vec<_> = lines.lines().take(8).collect();
    let data = folder.path().join("keeper.jsonl");
    std::fs::write(&data, lines.join("\n")).unwrap();
    let first = serve(&[MODEL, "--blocks", "0..10"]);
    let others = ["10..20", "20..30"]
        .map(|blocks| serve(&[MODEL, "--blocks", blocks, "--join", first.address()]));
    let kept = folder.path().join("kept");
    let kept = kept.to_str().unwrap();
    let gateway = Gateway::start(&["--join", first.address(), "--fine-tuning", kept]);
    let script = format!("{ROOT}/python/fine_tuning.py");
    let arguments = [script.as_str(), &gateway.url(""), data.to_str().unwrap()];
    let output = Command::new(python).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    [first].iter().chain(&others).for_each(|server| server.assert_no_errors());
    let without = Gateway::start(&["--local"]);
    assert_eq!(without.get("/v1/files").status, 404, "it learns nothing");
}
