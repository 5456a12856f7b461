//! What every implementation of the seam promises, checked by one thread that is each of the processes in turn.

use std::collections::BTreeSet;

use super::*;
use crate::storage::fork::undisturbed;

/// Another opening of the same directory, by another process.
type Opening<'a> = dyn Fn() -> Box<dyn Neighbours> + 'a;

pub(super) fn keeps_the_contract(open: &Opening<'_>) {
    a_session_lives_until_it_is_dropped(open);
    all_living_sessions_are_found(open);
    a_guest_connects_to_the_one_that_listens(open);
    bytes_come_in_order_and_before_the_end(open);
    a_full_connection_takes_bytes_again(open);
    the_last_bytes_come_though_the_peer_left_bytes_unread(open);
    an_ended_connection_is_over_for_both(open);
    what_waits_to_be_accepted_ends_with_the_listener(open);
    a_notifier_is_ready_until_it_is_cleared(open);
}

pub(super) fn id(number: u64) -> SessionId {
    SessionId::new(number).unwrap()
}

pub(super) fn begin(neighbours: &dyn Neighbours, number: u64) -> Box<dyn Session> {
    neighbours.begin(id(number)).unwrap().unwrap()
}

/// The numbers of all living sessions, each of which is found once.
pub(super) fn living(neighbours: &dyn Neighbours) -> BTreeSet<u64> {
    let found = neighbours.living().unwrap();
    let set: BTreeSet<u64> = found.iter().map(|session| session.get()).collect();
    assert_eq!(set.len(), found.len());
    set
}

fn a_session_lives_until_it_is_dropped(open: &Opening<'_>) {
    let (a, b) = (open(), open());
    assert_eq!(a.standing().unwrap(), Standing::Here);
    assert!(!a.lives(id(7)).unwrap() && a.living().unwrap().is_empty());
    let mut session = begin(&*a, 7);
    assert_eq!(session.id(), id(7));
    // Its own process sees it as the others do.
    for neighbours in [&a, &b] {
        assert!(neighbours.lives(id(7)).unwrap());
        assert!(!neighbours.lives(id(6)).unwrap() && !neighbours.lives(id(8)).unwrap());
        assert!(neighbours.begin(id(7)).unwrap().is_none());
        assert_eq!(living(&**neighbours), [7].into());
    }
    assert!(session.live_on().unwrap() && b.lives(id(7)).unwrap());
    drop(session);
    assert!(!a.lives(id(7)).unwrap() && !b.lives(id(7)).unwrap());
    assert_eq!(a.standing().unwrap(), Standing::Here);
}

fn all_living_sessions_are_found(open: &Opening<'_>) {
    let openings = [open(), open(), open()];
    // The ends of the range, neighbouring numbers, and some in between.
    let last = SessionId::END - 1;
    let some = (0..200_u64).map(|n| 1 + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % last);
    let numbers: BTreeSet<u64> = [1, 2, 3, last - 1, last].into_iter().chain(some).collect();
    let all = numbers.iter().zip(openings.iter().cycle());
    let mut sessions: Vec<_> = all.map(|(number, opening)| begin(&**opening, *number)).collect();
    assert!(openings.iter().all(|opening| living(&**opening) == numbers));
    let left = sessions.split_off(sessions.len() / 2);
    drop(sessions);
    assert_eq!(living(&*openings[1]), left.iter().map(|session| session.id().get()).collect());
    drop(left);
    assert!(living(&*openings[2]).is_empty());
}

/// What a source is ready for, of receiving and sending.
fn ready(source: &dyn Waitable) -> (bool, bool) {
    let both = Interest { receive: true, send: true };
    let ready = wait(&[(source, both)], Some(Duration::ZERO)).unwrap();
    (ready[0].receive, ready[0].send)
}

pub(super) fn accept(listener: &dyn Listener) -> Box<dyn Connection> {
    match undisturbed(|| listener.accept()).unwrap() {
        Accepted::Guest(connection) => connection,
        other => panic!("{other:?}"),
    }
}

fn a_guest_connects_to_the_one_that_listens(open: &Opening<'_>) {
    let (host, guest, next) = (open(), open(), open());
    assert!(guest.connect().unwrap().is_none());
    assert!(host.may_host().unwrap());
    let listener = host.listen().unwrap();
    assert!(!ready(listener.waitable()).0);
    assert!(matches!(listener.accept().unwrap(), Accepted::Nobody));
    let first = guest.connect().unwrap().unwrap();
    let second = guest.connect().unwrap().unwrap();
    assert!(ready(listener.waitable()).0);
    let (to_first, to_second) = (accept(&*listener), accept(&*listener));
    assert!(!ready(listener.waitable()).0);
    // In the order in which they came.
    assert_eq!((first.send(b"1"), second.send(b"2")), (SendResult::Bytes(1), SendResult::Bytes(1)));
    assert_eq!((receive(&*to_first), receive(&*to_second)), (b"1".to_vec(), b"2".to_vec()));
    // The name is taken by the next one. It doesn't lose it when its predecessor removes its own.
    let successor = next.listen().unwrap();
    listener.unlink().unwrap();
    drop(listener);
    let third = guest.connect().unwrap().unwrap();
    let to_third = accept(&*successor);
    assert_eq!((third.send(b"3"), receive(&*to_third)), (SendResult::Bytes(1), b"3".to_vec()));
    // Connections outlive their listener.
    assert_eq!((to_first.send(b"4"), receive(&*first)), (SendResult::Bytes(1), b"4".to_vec()));
    successor.unlink().unwrap();
    assert!(guest.connect().unwrap().is_none());
    successor.unlink().unwrap();
    // A name that was left leads nowhere, and may be taken.
    drop(next.listen().unwrap());
    assert!(guest.connect().unwrap().is_none());
    drop(host.listen().unwrap());
}

/// What there is to receive. An end is only expected by the tests of it.
pub(super) fn receive(connection: &dyn Connection) -> Vec<u8> {
    let mut buf = [0; 4096];
    match connection.receive(&mut buf) {
        Received::Bytes(received) => buf[..received].to_vec(),
        Received::Nothing => Vec::new(),
        Received::End => panic!("it has ended"),
    }
}

/// A connection from a guest to a host, both ends.
fn pair(open: &Opening<'_>) -> (Box<dyn Connection>, Box<dyn Connection>) {
    let (host, guest) = (open(), open());
    let listener = host.listen().unwrap();
    let guest = guest.connect().unwrap().unwrap();
    (guest, accept(&*listener))
}

fn bytes_come_in_order_and_before_the_end(open: &Opening<'_>) {
    let (a, b) = pair(open);
    assert_eq!(a.receive(&mut [0; 9]), Received::Nothing);
    assert_eq!((ready(a.waitable()), ready(b.waitable())), ((false, true), (false, true)));
    assert_eq!((a.send(b"abc"), a.send(b"de")), (SendResult::Bytes(3), SendResult::Bytes(2)));
    assert_eq!((ready(a.waitable()), ready(b.waitable())), ((false, true), (true, true)));
    let mut buf = [0; 2];
    assert_eq!((b.receive(&mut buf), buf), (Received::Bytes(2), *b"ab"));
    assert!(ready(b.waitable()).0);
    assert_eq!((receive(&*b), receive(&*b)), (b"cde".to_vec(), Vec::new()));
    assert!(!ready(b.waitable()).0);
    assert_eq!(a.send(b"last"), SendResult::Bytes(4));
    drop(a);
    assert!(ready(b.waitable()).0);
    assert_eq!(b.send(b"x"), SendResult::Gone);
    assert_eq!(receive(&*b), b"last");
    assert!(ready(b.waitable()).0);
    assert_eq!(b.receive(&mut buf), Received::End);
    assert_eq!((b.receive(&mut buf), b.send(b"x")), (Received::End, SendResult::Gone));
}

fn a_full_connection_takes_bytes_again(open: &Opening<'_>) {
    let (a, b) = pair(open);
    let message: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
    let mut sent: Vec<u8> = Vec::new();
    loop {
        match a.send(&message) {
            SendResult::Bytes(taken) => sent.extend(&message[..taken]),
            SendResult::Full => break,
            SendResult::Gone => panic!("it has ended"),
        }
        assert!(sent.len() < 1 << 30, "it never becomes full");
    }
    assert_eq!((ready(a.waitable()), ready(b.waitable())), ((false, false), (true, true)));
    // The other direction has its own space.
    assert_eq!((b.send(b"x"), receive(&*a)), (SendResult::Bytes(1), b"x".to_vec()));
    let mut received: Vec<u8> = Vec::new();
    while received.len() < sent.len() {
        received.extend(receive(&*b));
    }
    assert!(received == sent);
    assert!(ready(a.waitable()).1);
    assert_eq!((a.send(b"y"), receive(&*b)), (SendResult::Bytes(1), b"y".to_vec()));
}

/// On a socket this is `ECONNRESET`.
fn the_last_bytes_come_though_the_peer_left_bytes_unread(open: &Opening<'_>) {
    let (a, b) = pair(open);
    assert_eq!(
        (a.send(b"unread"), b.send(b"answer")),
        (SendResult::Bytes(6), SendResult::Bytes(6))
    );
    drop(b);
    assert_eq!(receive(&*a), b"answer");
    assert_eq!(a.receive(&mut [0; 9]), Received::End);
    // Also if the failed send is what the end is noticed by.
    let (a, b) = pair(open);
    assert_eq!(
        (a.send(b"unread"), b.send(b"answer")),
        (SendResult::Bytes(6), SendResult::Bytes(6))
    );
    drop(b);
    assert_eq!(a.send(b"more"), SendResult::Gone);
    assert_eq!(receive(&*a), b"answer");
    assert_eq!(a.receive(&mut [0; 9]), Received::End);
}

fn an_ended_connection_is_over_for_both(open: &Opening<'_>) {
    let (a, b) = pair(open);
    assert_eq!((a.send(b"to b"), b.send(b"to a")), (SendResult::Bytes(4), SendResult::Bytes(4)));
    a.end();
    assert!(ready(a.waitable()).0 && ready(b.waitable()).0);
    assert_eq!((a.send(b"x"), b.send(b"x")), (SendResult::Gone, SendResult::Gone));
    assert_eq!((receive(&*b), receive(&*a)), (b"to b".to_vec(), b"to a".to_vec()));
    let mut buf = [0; 9];
    assert_eq!((a.receive(&mut buf), b.receive(&mut buf)), (Received::End, Received::End));
}

fn what_waits_to_be_accepted_ends_with_the_listener(open: &Opening<'_>) {
    let (host, guest) = (open(), open());
    let listener = host.listen().unwrap();
    let waits = guest.connect().unwrap().unwrap();
    assert_eq!(waits.send(b"hello"), SendResult::Bytes(5));
    assert_eq!(waits.receive(&mut [0; 9]), Received::Nothing);
    drop(listener);
    assert!(ready(waits.waitable()).0);
    assert_eq!((waits.receive(&mut [0; 9]), waits.send(b"x")), (Received::End, SendResult::Gone));
}

fn a_notifier_is_ready_until_it_is_cleared(open: &Opening<'_>) {
    let (here, other) = (open(), open());
    let listener = here.listen().unwrap();
    let (notifier, connection) = (here.notifier().unwrap(), other.connect().unwrap().unwrap());
    let receive = Interest { receive: true, send: false };
    let found = || {
        let on = [
            (connection.waitable(), receive),
            (notifier.waitable(), receive),
            (listener.waitable(), receive),
        ];
        let ready = wait(&on, Some(Duration::ZERO)).unwrap();
        assert!(ready.iter().all(|ready| !ready.send), "nobody asked");
        ready.iter().map(|ready| ready.receive).collect::<Vec<_>>()
    };
    notifier.clear();
    assert_eq!(found(), [false, false, true]);
    notifier.notify();
    notifier.notify();
    assert_eq!(found(), [false, true, true]);
    notifier.clear();
    assert_eq!(found(), [false, false, true]);
}
