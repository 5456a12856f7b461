//! The promise of each level, each in a test that fails when the level is weakened.

use super::*;
use crate::storage::memory::Crash;

/// A player with one segment, ready to write, nothing unsynced.
fn ready() -> Player {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    player
}

/// Returns whether an open of `disk` shows the item.
fn stands(disk: &MemoryStorage, history: &History, id: u32) -> bool {
    let mut history = history.clone();
    // Nothing is required here; it is looked for.
    history.items.values_mut().for_each(|item| item.held = None);
    let opened = open(&World::over(disk.clone(), 900), &mut history, Fate::PowerLost).unwrap();
    opened.seen.iter().any(|(seen, _)| *seen == id)
}

#[test]
fn sync_survives_power_loss_from_its_answer_on() {
    for n in 0..20 {
        let mut player = ready();
        for _ in 0..n {
            let placed = player.place(What::Forget, None, 0).unwrap();
            player.commit(placed, if n % 2 == 0 { Flush } else { Lazy }).unwrap();
        }
        let placed = player.place(What::End, None, 300).unwrap();
        let before = player.world.disk.crash_clone(Crash::NONE);
        assert!(!stands(&before, &player.history, placed.0), "durable before it was synced");
        player.commit(placed, Sync).unwrap();
        for crash in player.world.disk.crashes(8) {
            let after = player.world.disk.crash_clone(crash);
            assert!(stands(&after, &player.history, placed.0), "{crash:?}");
        }
    }
}

#[test]
fn flush_survives_a_kill_from_its_answer_on_and_costs_no_sync() {
    let mut player = ready();
    for _ in 0..5 {
        let placed = player.place(What::Forget, None, 0).unwrap();
        let before = player.world.disk.kill_clone();
        assert!(!stands(&before, &player.history, placed.0), "written before it was asked for");
        let syncs = player.world.faulty.count(faulty::Calls::Of(faulty::Class::Sync));
        player.commit(placed, Flush).unwrap();
        assert_eq!(player.world.faulty.count(faulty::Calls::Of(faulty::Class::Sync)), syncs);
        assert!(stands(&player.world.disk.kill_clone(), &player.history, placed.0));
        // A power loss may take it: `Sync` exists for that.
        assert!(!stands(&player.world.disk.crash_clone(Crash::NONE), &player.history, placed.0));
    }
}

#[test]
fn lazy_answers_at_once_and_loses_at_most_the_tail_of_the_last_second() {
    let mut player = ready();
    player.play(&[Op::Pass(1)]).unwrap();
    let calls = player.world.faulty.count(faulty::Calls::Any);
    let mut old = Vec::new();
    for _ in 0..5 {
        let placed = player.place(What::Forget, None, 0).unwrap();
        player.commit(placed, Lazy).unwrap();
        old.push(placed.0);
    }
    assert_eq!(player.world.faulty.count(faulty::Calls::Any), calls, "a call to the system");
    // The background notices them, and has them synced a second later; they are written after a few milliseconds.
    player.play(&[Op::Pass(1), Op::Pass(11)]).unwrap();
    let killed = player.world.disk.kill_clone();
    assert!(old.iter().all(|id| stands(&killed, &player.history, *id)));
    player.play(&[Op::Pass(989)]).unwrap();
    let young = player.place(What::Forget, None, 0).unwrap();
    player.commit(young, Lazy).unwrap();
    let lost = player.world.disk.crash_clone(Crash::NONE);
    assert!(old.iter().all(|id| stands(&lost, &player.history, *id)), "older than a second");
    assert!(!stands(&player.world.disk.kill_clone(), &player.history, young.0));
}

#[test]
fn lazy_writes_what_grows_too_large_to_buffer() {
    let mut world = World::new();
    world.seed = 3;
    let seams = world.seams();
    let sizes = Sizes { segment_bytes_first: 4 << 20, segment_bytes_max: 4 << 20, ..SIZES };
    crate::log::open::birth::create(&seams, dir(), &sizes).unwrap();
    let manifest = manifest::load(&*seams.storage, dir()).unwrap().unwrap();
    let (log, _) = steps::open(seams, dir(), sizes, manifest, &mut |_, _| Ok(())).unwrap();
    log.resuming().begin_writing(false, &mut |_, _| Ok(())).unwrap();
    for n in 0..1000 {
        let body = Body { key: b"k", progress: &[1; 900], ..Body::default() };
        let placed = log.place(Draft::update(&body), Room::Free).unwrap();
        log.commit(placed, Lazy).unwrap();
        let unwritten = log.end().since(log.queue.written());
        assert!(unwritten <= crate::limits::BUFFERED_BYTES_MAX, "{n}: {unwritten}");
    }
}

#[test]
fn four_unsynced_mebibytes_are_synced_within_a_second() {
    let world = World::new();
    let seams = world.seams();
    let sizes = Sizes { segment_bytes_first: 16 << 20, segment_bytes_max: 16 << 20, ..SIZES };
    crate::log::open::birth::create(&seams, dir(), &sizes).unwrap();
    let manifest = manifest::load(&*seams.storage, dir()).unwrap().unwrap();
    let (log, _) = steps::open(seams, dir(), sizes, manifest, &mut |_, _| Ok(())).unwrap();
    log.resuming().begin_writing(false, &mut |_, _| Ok(())).unwrap();
    let fill = |bytes: u64| {
        let end = log.tail.lock().end().plus(bytes);
        while log.tail.lock().end() < end {
            let body = Body { key: b"k", progress: &[1; 900], ..Body::default() };
            let placed = log.place(Draft::update(&body), Room::Free).unwrap();
            log.commit(placed, Flush).unwrap();
        }
    };
    let rest = || while log.step().unwrap() == Due::Now {};
    rest();
    let durable = log.durable();
    fill(crate::limits::UNSYNCED_BYTES_MAX - 8192);
    rest();
    assert_eq!(log.durable(), durable);
    fill(16384);
    rest();
    assert!(log.durable() > durable);
}
