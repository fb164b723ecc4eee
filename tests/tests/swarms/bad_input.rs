//! Bad input gets one clear line and a failure, and servers that run go on serving.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use umbel_client::swarm::{exchange, unix_time};
use umbel_net::{Identity, Link, LinkProtocol, Multiaddr, Network, NetworkConfig, Role};
use umbel_protocol::announcement::{Announcement, SignedAnnouncement, Throughput};
use umbel_protocol::inference::{
    AnswerRows, ClientMessage, Destination, Draw, OpenSession, Sampling, ServerMessage, Step,
};
use umbel_protocol::{DType, ErrorCode, Frame, ModelId, SessionId, Span, StepId, Tensor};
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, checkpoint, report, serve, umbel};

const PROMPT: [&str; 4] = ["--prompt-ids", "5,17,99", "--max-tokens", "4"];

/// The one line that a failed command leaves for a person.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it succeeded: {output:?}");
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    let lines: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{}", output.stderr);
    lines[0].to_owned()
}

fn assert_complains(output: &Output, words: &[&str]) {
    let complaint = complaint(output);
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in {complaint:?}");
    }
}

fn generate(model: &str, place: &[&str]) -> Output {
    umbel(&[&["generate", model, "--json"], &PROMPT[..], place].concat())
}

/// The server still gives what the model gives in one process.
fn assert_serves(server: &mut Server, model: &str) {
    assert!(server.is_running(), "{}", server.stderr());
    let served = report(&generate(model, &["--join", server.address()]));
    assert_eq!(served["token_ids"], report(&generate(model, &["--local"]))["token_ids"]);
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

/// A copy of a checkpoint that can be spoiled.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&checkpoint(name)).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn a_model_that_nobody_knows_is_refused_with_what_can_be_given() {
    for arguments in [["inspect", "no-such-model"], ["serve", "no-such-model"]] {
        assert_complains(&umbel(&arguments), &["no-such-model", "smollm2-135m"]);
    }
}

#[test]
fn an_architecture_or_quantization_that_is_unknown_is_named() {
    for (name, architecture) in [("bloom", "bloom"), ("gemma3", "gemma3")] {
        assert_complains(&umbel(&["inspect", &checkpoint(name)]), &[architecture, "llama"]);
    }
    let folder = copy("llama");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let spoiled =
        config.replacen('{', "{\"quantization_config\": {\"quant_method\": \"gptq\"},", 1);
    fs::write(&path, spoiled).unwrap();
    assert_complains(&umbel(&["inspect", folder.path().to_str().unwrap()]), &["gptq"]);
}

#[test]
fn files_that_are_cut_short_or_lie_are_refused() {
    let folder = copy("llama");
    let model = folder.path().to_str().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[8..200].fill(b'x');
    for bytes in [&whole[..whole.len() / 2], &whole[..20], &[], &lying, &garbled] {
        fs::write(&path, bytes).unwrap();
        assert_complains(&generate(model, &["--local"]), &["model.safetensors"]);
        assert_complains(&umbel(&["serve", model]), &["model.safetensors"]);
    }
}

#[test]
fn a_gguf_file_that_is_no_gguf_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let header = |tensors: u64, values: u64| {
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes()]
            .concat()
    };
    let files = [
        b"not a model".to_vec(),
        Vec::new(),
        header(u64::MAX, 0),
        header(0, u64::MAX),
        header(0, 0),
    ];
    for bytes in files {
        fs::write(&path, bytes).unwrap();
        assert_complains(&umbel(&["inspect", path.to_str().unwrap()]), &["model.gguf"]);
    }
}

#[test]
fn a_prompt_beyond_the_context_or_the_vocabulary_is_refused_before_any_work() {
    let model = checkpoint("llama");
    let mut server = serve(&[&model]);
    let long = vec!["7"; 256].join(",");
    for place in [["--local"].as_slice(), &["--join", server.address()]] {
        let arguments = [&["generate", &model, "--prompt-ids", &long], place].concat();
        assert_complains(&umbel(&arguments), &["256 tokens", "context"]);
        let arguments = [&["generate", &model, "--prompt-ids", "288"], place].concat();
        assert_complains(&umbel(&arguments), &["288"]);
    }
    let text = ["generate", &model, "--local", "--prompt", "hello"];
    assert_complains(&umbel(&text), &["tokenizer", "--prompt-ids"]);
    let nothing = ["generate", &model, "--local", "--prompt-ids", "1", "--max-tokens", "0"];
    assert_complains(&umbel(&nothing), &["--max-tokens"]);
    assert_serves(&mut server, &model);
}

#[test]
fn blocks_that_nobody_serves_are_named() {
    let model = checkpoint("llama");
    let server = serve(&[&model, "--blocks", "1..3"]);
    let output = generate(&model, &["--join", server.address()]);
    assert_complains(&output, &["blocks 0..1, 3..4"]);
    let other = checkpoint("qwen3");
    assert_complains(
        &generate(&other, &["--join", server.address()]),
        &["no server", "this model"],
    );
}

#[test]
fn an_address_at_which_nobody_is_gets_an_answer_in_time() {
    let model = checkpoint("llama");
    for address in ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1"] {
        assert_complains(&generate(&model, &["--join", address]), &[address]);
        assert_complains(&umbel(&["status", "--join", address]), &[address]);
    }
    let output = umbel(&["status", "--join", "nonsense"]);
    assert!(!output.status.success());
}

#[test]
fn blocks_that_the_model_does_not_have_are_refused() {
    let model = checkpoint("llama");
    assert_complains(&umbel(&["serve", &model, "--blocks", "2..9"]), &["0..4", "2..9"]);
    assert_complains(&umbel(&["serve", &model, "--block-count", "9"]), &["4 blocks"]);
}

/// A peer that says what it likes.
struct Stranger {
    network: Network,
    server: umbel_protocol::PeerId,
    address: Multiaddr,
}

impl Stranger {
    async fn meet(server: &Server) -> Self {
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
        let network = Network::start(config).await.unwrap();
        let address: Multiaddr = server.address().parse().unwrap();
        let server = network.join(std::slice::from_ref(&address)).await.unwrap()[0];
        Self { network, server, address }
    }

    async fn link(&self, protocol: LinkProtocol) -> Link {
        let addresses = [self.address.clone()];
        self.network.open_link(self.server, &addresses, protocol).await.unwrap()
    }

    /// Sends frames and reads until the server closes the link.
    async fn say(&self, protocol: LinkProtocol, frames: Vec<Frame>) -> Vec<Frame> {
        let (mut sender, mut receiver) = self.link(protocol).await.split();
        for frame in frames {
            // The server may have closed the link at an earlier one.
            let _closed = sender.send(frame).await;
        }
        let mut answers = Vec::new();
        let read = async {
            while let Ok(Some(frame)) = receiver.receive().await {
                answers.push(frame);
            }
        };
        // A link that stays open is no fault; what matters is what comes over it.
        let _open = tokio::time::timeout(Duration::from_secs(2), read).await;
        answers
    }
}

fn garbage(bytes: usize) -> Frame {
    Frame { header: Bytes::from(vec![0xff; bytes]), payload: Bytes::new() }
}

fn model_of(server: &Server) -> (ModelId, umbel_protocol::PeerId) {
    let status = report(&umbel(&["status", "--json", "--join", server.address()]));
    let first = &status["servers"][0];
    let text = |name: &str| first[name].as_str().unwrap().to_owned();
    (text("model").parse().unwrap(), text("peer").parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_any_link_harms_nobody_else() {
    let model = checkpoint("llama");
    let mut server = serve(&[&model]);
    let stranger = Stranger::meet(&server).await;
    for protocol in [LinkProtocol::Session, LinkProtocol::Push, LinkProtocol::Directory] {
        for bytes in [0, 1, 100, 8_000] {
            let answers = stranger.say(protocol, vec![garbage(bytes)]).await;
            assert!(answers.is_empty(), "{protocol} answered {bytes} bytes of garbage");
        }
    }
    assert_serves(&mut server, &model);
}

/// What a session needs that has all blocks of the small fixture here.
fn opening(session: SessionId, model: ModelId, thin: bool) -> OpenSession {
    OpenSession {
        session,
        model,
        blocks: Span::new(0, 4).unwrap(),
        tokens_max: 16,
        previous: None,
        next: Destination::Client,
        next_position: 0,
        next_step: StepId(0),
        results: DType::F32,
        compress: false,
        cache: DType::F32,
        prefix: Vec::new(),
        thin,
        drawer: None,
        adapter: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_of_the_wrong_shape_ends_its_own_session_alone() {
    let model = checkpoint("llama");
    let mut server = serve(&[&model]);
    let (id, _) = model_of(&server);
    let stranger = Stranger::meet(&server).await;
    let session = SessionId::new(42);
    let open = opening(session, id, false);
    for shape in [vec![1, 63], vec![1, 65], vec![64], vec![2, 2, 64]] {
        let values: u32 = shape.iter().product();
        let payload = Bytes::from(vec![0; 4 * values as usize]);
        let hidden = Tensor::new(DType::F32, shape.clone(), payload).unwrap();
        let step = Step {
            session,
            step: StepId(0),
            position: 0,
            hidden,
            trace: Vec::new(),
            replay: false,
            answer_rows: AnswerRows::All,
            goes_on: false,
        };
        let frames =
            vec![ClientMessage::Open(open.clone()).encode(), ClientMessage::Step(step).encode()];
        let answers = stranger.say(LinkProtocol::Session, frames).await;
        let refused = answers.into_iter().any(|frame| {
            matches!(
                ServerMessage::decode(frame),
                Ok(ServerMessage::Error(error)) if error.code == ErrorCode::WrongShape
            )
        });
        assert!(refused, "{shape:?}");
    }
    assert_serves(&mut server, &model);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_the_model_lacks_ends_its_own_thin_session_alone() {
    let model = checkpoint("llama");
    let mut server = serve(&[&model]);
    let (id, _) = model_of(&server);
    let stranger = Stranger::meet(&server).await;
    let session = SessionId::new(42);
    let open = opening(session, id, true);
    let two_wide = Tensor::new(DType::Id, vec![1, 2], Bytes::from(vec![0; 8])).unwrap();
    for hidden in [Tensor::of_ids(&[5, 1_000_000]), two_wide] {
        let step = Step {
            session,
            step: StepId(0),
            position: 0,
            hidden: hidden.clone(),
            trace: Vec::new(),
            replay: false,
            answer_rows: AnswerRows::Last,
            goes_on: false,
        };
        let frames =
            vec![ClientMessage::Open(open.clone()).encode(), ClientMessage::Step(step).encode()];
        let answers = stranger.say(LinkProtocol::Session, frames).await;
        let refused = answers.into_iter().any(|frame| {
            matches!(
                ServerMessage::decode(frame),
                Ok(ServerMessage::Error(error)) if error.code == ErrorCode::WrongShape
            )
        });
        assert!(refused, "{hidden:?}");
    }
    // Numbers by which nothing can be drawn close the link.
    let sampling = Sampling {
        temperature: f32::NAN,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };
    let (end_ids, text) = (Vec::new(), Vec::new());
    let draw = Draw { session, sampling, from: 1, until: 9, end_ids, text, first: None };
    let frames = vec![ClientMessage::Open(open).encode(), ClientMessage::Draw(draw).encode()];
    let answers = stranger.say(LinkProtocol::Session, frames).await;
    let taken = answers
        .into_iter()
        .any(|frame| matches!(ServerMessage::decode(frame), Ok(ServerMessage::DrawTaken { .. })));
    assert!(!taken);
    assert_serves(&mut server, &model);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_announcement_is_not_taken() {
    let model = checkpoint("llama");
    let mut server = serve(&[&model, "--blocks", "0..2"]);
    let (id, peer) = model_of(&server);
    let stranger = Stranger::meet(&server).await;
    let now = unix_time();
    let announcement = Announcement {
        peer: stranger.network.peer_id(),
        model: id,
        model_name: "forged".to_owned(),
        span: Span::new(0, 4).unwrap(),
        block_count: 4,
        addresses: Vec::new(),
        version: "0".to_owned(),
        throughput: Throughput::default(),
        kv_tokens_free: 1_000_000,
        queue_depth: 0,
        draining: false,
        issued: now,
        expires: now + Duration::from_secs(60),
        next_hops: Vec::new(),
        adapters: Vec::new(),
        moving_to: None,
        held_blocks_max: 0,
        proposal: None,
        joined: None,
        holds_ends: false,
    };
    let own = announcement.clone().sign(stranger.network.signing_key());
    let mut signature = *own.signature();
    signature[0] ^= 1;
    let spoiled = SignedAnnouncement::new(own.bytes().clone(), signature);
    let of_another = Announcement { peer, ..announcement }.sign(stranger.network.signing_key());
    for forged in [spoiled, of_another] {
        let told = exchange::announce(&stranger.network, stranger.server, &[], forged).await;
        assert!(told.is_err(), "a forged announcement was taken");
    }
    let status = report(&umbel(&["status", "--json", "--join", server.address()]));
    assert_eq!(status["servers"].as_array().unwrap().len(), 1);
    exchange::announce(&stranger.network, stranger.server, &[], own).await.unwrap();
    let status = report(&umbel(&["status", "--json", "--join", server.address()]));
    assert_eq!(status["servers"].as_array().unwrap().len(), 2, "a true one is");
    assert!(server.is_running());
}
