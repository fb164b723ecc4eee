//! Frames over links.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use umbel_net::{AcceptError, LinkProtocol, LinkReceiver, LinkSender, SendError};

#[cfg(target_os = "linux")]
use crate::local_pair;
use crate::{Pair, QUIC, TCP, frame, pair, server};

async fn send_frames(mut sender: LinkSender, count: usize) {
    for number in 0..count {
        sender.send(frame(number, number * 31 % 40_000)).await.unwrap();
    }
    sender.close().await;
}

async fn receive_frames(mut receiver: LinkReceiver, count: usize) {
    for number in 0..count {
        let received = receiver.receive().await.unwrap();
        assert_eq!(received, Some(frame(number, number * 31 % 40_000)));
    }
    assert_eq!(receiver.receive().await.unwrap(), None, "the link was closed in order");
}

async fn a_thousand_frames_pass_each_way(pair: Pair) {
    let Pair { server: _server, client: _client, accepted, opened } = pair;
    let ((up, from_server), (down, from_client)) = (opened.split(), accepted.split());
    tokio::join!(
        send_frames(up, 1_000),
        send_frames(down, 1_000),
        receive_frames(from_server, 1_000),
        receive_frames(from_client, 1_000),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_frames_pass_each_way_over_quic() {
    a_thousand_frames_pass_each_way(pair(QUIC).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_frames_pass_each_way_over_tcp() {
    a_thousand_frames_pass_each_way(pair(TCP).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_frames_pass_each_way_within_the_machine() {
    a_thousand_frames_pass_each_way(local_pair().await).await;
}

async fn a_large_payload_arrives_whole(pair: Pair) {
    let Pair { server: _server, client: _client, accepted, opened } = pair;
    let large = frame(77, 8 << 20);
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    let (sent, received) = tokio::join!(sender.send(large.clone()), receiver.receive());
    sent.unwrap();
    assert!(received.unwrap() == Some(large));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_arrives_whole_over_quic() {
    a_large_payload_arrives_whole(pair(QUIC).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_arrives_whole_over_tcp() {
    a_large_payload_arrives_whole(pair(TCP).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_arrives_whole_within_the_machine() {
    a_large_payload_arrives_whole(local_pair().await).await;
}

/// Frames of 1 MiB, more of them than all windows and buffers between the peers hold.
const FRAMES: usize = 64;

/// What those hold at most: the window of a QUIC stream is 8 MiB, that of a Yamux stream grows
/// from 256 KiB while it is read, and the sockets of TCP hold some MiB.
const FRAMES_BUFFERED_MAX: usize = 32;

async fn a_sender_waits_for_a_reader(pair: Pair) {
    let Pair { server, client, accepted, opened } = pair;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        for number in 0..FRAMES {
            sender.send(frame(number, 1 << 20)).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });

    // Another link of the same peers is not held up, and gives the sender every chance to go on.
    let mut incoming = server.accept(LinkProtocol::Push).unwrap();
    let push = client.open_link(server.peer_id(), &[], LinkProtocol::Push).await.unwrap();
    let (_, pushed) = incoming.next().await.unwrap();
    let ((mut push, _up2), (_down2, mut pushed)) = (push.split(), pushed.split());
    for number in 0..200 {
        push.send(frame(number, 16 << 10)).await.unwrap();
        assert_eq!(pushed.receive().await.unwrap(), Some(frame(number, 16 << 10)));
    }
    let held = sent.load(Ordering::Relaxed);
    assert!(held <= FRAMES_BUFFERED_MAX, "{held} frames were sent that nobody has read");

    for number in 0..FRAMES {
        assert!(receiver.receive().await.unwrap() == Some(frame(number, 1 << 20)));
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_a_reader_over_quic() {
    a_sender_waits_for_a_reader(pair(QUIC).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_a_reader_over_tcp() {
    a_sender_waits_for_a_reader(pair(TCP).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_a_reader_within_the_machine() {
    a_sender_waits_for_a_reader(local_pair().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_is_not_waited_for() {
    let Pair { server: _server, client: _client, accepted, opened } = pair(QUIC).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    assert!(sender.send_within(frame(1, 1), Duration::from_secs(60)).await);
    assert_eq!(receiver.receive().await.unwrap(), Some(frame(1, 1)));
    // More than the connection takes before it is read.
    assert!(!sender.send_within(frame(2, 48 << 20), Duration::from_millis(50)).await);
}

/// Polls a future once.
async fn once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx)));
    match poll.await {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_midway_loses_nothing() {
    let Pair { server: _server, client: _client, accepted, opened } = pair(QUIC).await;
    let ((mut sender, _up), (_down, mut receiver)) = (opened.split(), accepted.split());
    // More than the peer's window, so that the call cannot end before the peer reads.
    let large = frame(1, 20 << 20);
    assert!(once(sender.send(large.clone())).await.is_none(), "it waits for the reader");
    let sending = tokio::spawn(async move {
        sender.send(frame(2, 100)).await.unwrap();
        sender
    });
    let mut read = Vec::new();
    while read.len() < 2 {
        match once(receiver.receive()).await {
            Some(frame) => read.push(frame.unwrap().unwrap()),
            None => tokio::task::yield_now().await,
        }
    }
    assert!(read == [large, frame(2, 100)]);
    sending.await.unwrap();
}

async fn each_direction_closes_by_itself(pair: Pair) {
    let Pair { server: _server, client: _client, accepted, opened } = pair;
    let ((up, mut down), (mut back, mut from)) = (opened.split(), accepted.split());
    up.close().await;
    assert_eq!(from.receive().await.unwrap(), None);
    back.send(frame(1, 10)).await.unwrap();
    assert_eq!(down.receive().await.unwrap(), Some(frame(1, 10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_direction_closes_by_itself_over_quic() {
    each_direction_closes_by_itself(pair(QUIC).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn each_direction_closes_by_itself_within_the_machine() {
    each_direction_closes_by_itself(local_pair().await).await;
}

async fn a_link_that_is_dropped_ends_at_its_peer(pair: Pair) {
    let Pair { server: _server, client: _client, accepted, opened } = pair;
    drop(opened);
    let (mut back, mut from) = accepted.split();
    assert_eq!(from.receive().await.unwrap(), None);
    let error = loop {
        if let Err(error) = back.send(frame(0, 1 << 20)).await {
            break error;
        }
    };
    assert!(matches!(error, SendError::Io(_) | SendError::Closed), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_dropped_ends_at_its_peer_over_quic() {
    a_link_that_is_dropped_ends_at_its_peer(pair(QUIC).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_dropped_ends_at_its_peer_within_the_machine() {
    a_link_that_is_dropped_ends_at_its_peer(local_pair().await).await;
}

#[tokio::test]
async fn links_of_one_protocol_are_accepted_in_one_place() {
    let server = server(QUIC).await;
    let first = server.accept(LinkProtocol::Push).unwrap();
    let again = server.accept(LinkProtocol::Push).unwrap_err();
    assert_eq!(again, AcceptError::AlreadyAccepting { protocol: LinkProtocol::Push });
    let _other = server.accept(LinkProtocol::Session).unwrap();
    drop(first);
    assert!(server.accept(LinkProtocol::Push).is_ok());
}
