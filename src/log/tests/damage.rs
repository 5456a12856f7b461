//! Damage: flipped, zeroed, swapped and stale bytes; files cut, emptied, deleted and exchanged.
//!
//! A cleanly closed store shows everything or refuses with the file and the place. A killed one does so for everything
//! below its last watermark; above it, it shows a prefix and reports the cut.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::*;
use crate::limits;
use crate::log::format::{Identity, SEGMENT_HEADER_BYTES};
use crate::log::open::recovery::Plan;
use crate::log::reader::{GO_ON, Met, SegmentReader};
use crate::log::segment::{self, Segment};
use crate::log::survey;
use crate::manifest::Listed;
use crate::storage::Access;

/// A store at rest: its disk, its records, and their places.
struct Still {
    disk: MemoryStorage,
    history: History,
    is_clean: bool,
    /// What an undamaged open shows, with the places before anything is moved.
    seen: Seen,
    /// Everything below it was once durable, and marked so.
    covered: Lsn,
    /// The watermark in the manifest.
    switched: Lsn,
    listed: Vec<Listed>,
    active: u32,
}

/// Opens without settling anything.
fn peek(disk: &MemoryStorage, history: &History) -> Result<(Log, Report, Seen)> {
    let seams = World::over(disk.clone(), 5000).seams();
    let Some(manifest) = manifest::load(&*seams.storage, dir())? else {
        let holds = scan::holds_records(&*seams.storage, dir())?;
        assert!(holds, "an unborn store");
        return Err(Error::corrupt(&manifest::path(dir()), 0, "a manifest is missing"));
    };
    let mut seen = Seen::new();
    let (log, report) = steps::open(seams, dir(), SIZES, manifest, &mut |record, _| {
        let body = record.body().unwrap();
        let id = u32::from_le_bytes(body.progress.try_into().unwrap());
        assert!(history.items[&id].is_told_by(record), "a wrong answer: {record:?}");
        seen.push((id, record.lsn));
        Ok(())
    })?;
    Ok((log, report, seen))
}

impl Still {
    fn new(player: Player, is_clean: bool) -> Self {
        let Player { world, history, opened, .. } = player;
        if is_clean {
            opened.as_ref().unwrap().log.resuming().close(|_| {}).unwrap();
        }
        let disk = world.disk.kill_clone();
        let (log, report, seen) = peek(&disk, &history).unwrap();
        assert_eq!(report.was_clean, is_clean);
        let covered = match &log.keeper.lock().plan {
            Plan::Continue => log.tail.lock().end(),
            Plan::Fork { covered, .. } => *covered,
        };
        let active = log.tail.lock().active.identity.ordinal;
        let listed = log.reading().listed();
        let switched = log.keeper.lock().manifest.durable;
        Still { disk, history, is_clean, seen, covered, switched, listed, active }
    }

    fn after(ops: &[Op], is_clean: bool) -> Self {
        let mut player = Player::new(World::new());
        player.play(ops).unwrap();
        Still::new(player, is_clean)
    }

    fn ids(&self) -> Vec<u32> {
        self.seen.iter().map(|(id, _)| *id).collect()
    }

    fn segment(&self, listed: &Listed) -> Segment {
        let manifest = manifest::load(&self.disk, dir()).unwrap().unwrap();
        Segment::open(&self.disk, &log_dir(), listed, manifest.store, Access::Read).unwrap()
    }

    /// File offset at which the records of a segment end.
    fn records_end(&self, listed: &Listed) -> u64 {
        let segment = self.segment(listed);
        let limit = listed.end.since(listed.base);
        let mut reader = SegmentReader::new(&segment, SEGMENT_HEADER_BYTES as u64, limit).unwrap();
        let walked = reader.walk(|met| match met {
            Met::Record(..) => GO_ON,
            _ => Ok(ControlFlow::Break(())),
        });
        walked.unwrap();
        segment.offset(reader.lsn())
    }

    /// The effect of damage: refused with a file and, for Corrupt, a place in it; or opened.
    fn open_damaged(&self, disk: &MemoryStorage) -> Result<(Vec<u32>, Report), Error> {
        let (log, report, seen) = match peek(disk, &self.history) {
            Ok(opened) => opened,
            Err(error) => {
                let fits = match error.kind() {
                    ErrorKind::Corrupt => error.path().is_some() && error.offset().is_some(),
                    ErrorKind::Incompatible | ErrorKind::Io => error.path().is_some(),
                    _ => false,
                };
                assert!(fits, "{error:?}");
                return Err(error);
            }
        };
        drop(log);
        let ids: Vec<u32> = seen.iter().map(|(id, _)| *id).collect();
        assert!(self.ids().starts_with(&ids), "no prefix: {ids:?}");
        Ok((ids, report))
    }

    /// The invariants under any damage. Returns whether it was noticed.
    fn hold(&self, disk: &MemoryStorage, case: &str) -> bool {
        self.hold_below(disk, self.covered, case)
    }

    /// Like `hold`, where the damage may have removed the last watermarks along with the records they cover.
    fn hold_below(&self, disk: &MemoryStorage, covered: Lsn, case: &str) -> bool {
        let Ok((ids, report)) = self.open_damaged(disk) else { return true };
        if self.is_clean {
            assert_eq!(ids, self.ids(), "{case}: lost in silence");
        } else {
            let below = self.seen.iter().filter(|(_, lsn)| *lsn < covered).count();
            assert!(ids.len() >= below, "{case}: lost below the watermark");
            assert!(ids.len() == self.seen.len() || report.cut.is_some(), "{case}: cut in silence");
        }
        if ids.len() == self.seen.len() {
            // Without effect now, and without any later one.
            let fate = if report.was_clean { Fate::Closed } else { Fate::Killed };
            // A later refusal is as good, if it names a damaged file; the case quotes them.
            let refused = |what: &str| {
                (what.contains("kind: Corrupt") || what.contains("kind: Io"))
                    && case.split('"').skip(1).step_by(2).any(|path| what.contains(path))
            };
            if let Err(what) = check(disk, &self.history, fate) {
                assert!(refused(&what), "{case}: {what}");
                return true;
            }
            let mut player =
                Player::after(World::over(disk.kill_clone(), 6000), self.history.clone(), fate);
            let errors = match player.play_on(&workload()) {
                Ok(()) => format!("{:?}", player.errors),
                Err(what) => panic!("{case}: {what}"),
            };
            assert!(player.errors.is_empty() || refused(&errors), "{case}: {errors}");
            return !player.errors.is_empty();
        }
        true
    }
}

/// Few records over three segments, the last of them in use, another one listed ahead; every level.
fn small() -> Vec<Op> {
    use Op::*;
    vec![
        Claim(Sync),
        End(Sync, 300),
        Pass(20),
        Claim(Flush),
        Kill,
        Claim(Sync),
        Pass(1),
        Batch(900),
        Batch(900),
        Pass(1),
        Batch(100),
        Pass(20),
        Claim(Sync),
        Claim(Flush),
        End(Lazy, 100),
        End(Flush, 50),
    ]
}

fn paths(disk: &MemoryStorage) -> Vec<PathBuf> {
    disk.files().into_iter().map(|(path, _)| path).collect()
}

#[test]
fn every_flipped_byte_of_a_closed_store_is_seen() {
    let still = Still::after(&small(), true);
    let (mut seen, mut harmless) = (0_u64, 0_u64);
    let mut flip = |path: &Path, offset: u64, is_used: bool| {
        for mask in [1 << (offset % 8), 0xff] {
            let disk = still.disk.kill_clone();
            disk.flip(path, offset, mask).unwrap();
            let case = format!("{path:?}, byte {offset}, mask {mask:#x}");
            if is_used {
                let error = still.open_damaged(&disk).expect_err(&case);
                assert_eq!(error.path(), Some(path), "{case}: {error:?}");
                seen += 1;
            } else if still.hold(&disk, &case) {
                seen += 1;
            } else {
                harmless += 1;
            }
        }
    };
    let manifest = manifest::path(dir());
    for offset in 0..still.disk.read(&manifest).unwrap().len() as u64 {
        flip(&manifest, offset, true);
    }
    for listed in &still.listed {
        let path = log_dir().join(segment::file_name(listed.ordinal));
        let len = still.disk.read(&path).unwrap().len() as u64;
        let used = still.records_end(listed);
        (0..used).for_each(|offset| flip(&path, offset, true));
        let step = if is_long() { 1 } else { 61 };
        (used..len).step_by(step).for_each(|offset| flip(&path, offset, false));
    }
    let listed: HashSet<String> =
        still.listed.iter().map(|listed| segment::file_name(listed.ordinal)).collect();
    for (path, len) in still.disk.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "MANIFEST" && !listed.contains(name) {
            (0..len).step_by(509).for_each(|offset| flip(&path, offset, false));
        }
    }
    println!(
        "closed: {seen} flips seen, {harmless} without effect, {} segments",
        still.listed.len()
    );
    assert!(seen > 10_000 && harmless > 10);
}

#[test]
fn every_flipped_byte_below_the_watermark_of_a_killed_store_is_seen() {
    let still = Still::after(&small(), false);
    let (mut refused, mut cut) = (0_u64, 0_u64);
    for listed in &still.listed {
        let path = log_dir().join(segment::file_name(listed.ordinal));
        let used = still.records_end(listed);
        for offset in 0..used {
            let disk = still.disk.kill_clone();
            disk.flip(&path, offset, 1 << (offset % 8)).unwrap();
            let lsn = listed.base.plus(offset);
            let case = format!("{path:?}, byte {offset}, lsn {lsn}, covered {}", still.covered);
            let is_header = offset < SEGMENT_HEADER_BYTES as u64;
            match still.open_damaged(&disk) {
                Err(error) => {
                    assert!(is_header || lsn < still.covered, "{case}: {error:?}");
                    assert_eq!(error.path(), Some(&*path), "{case}: {error:?}");
                    refused += 1;
                }
                Ok((ids, report)) => {
                    assert!(!is_header && lsn >= still.covered, "{case}: not seen");
                    // Exactly the records before the damaged one.
                    let after = still.seen.iter().position(|(_, at)| *at > lsn);
                    let before = after.unwrap_or(still.seen.len());
                    assert!(ids.len() == before || ids.len() + 1 == before, "{case}: {ids:?}");
                    let cut_at = report.cut.expect(&case);
                    assert!(cut_at.path == path && cut_at.offset <= offset && cut_at.bytes > 0);
                    cut += 1;
                }
            }
        }
    }
    let manifest = manifest::path(dir());
    for offset in 0..still.disk.read(&manifest).unwrap().len() as u64 {
        let disk = still.disk.kill_clone();
        disk.flip(&manifest, offset, 1 << (offset % 8)).unwrap();
        let error = still.open_damaged(&disk).expect_err("the manifest");
        assert_eq!(error.path(), Some(&*manifest));
        refused += 1;
    }
    println!("killed: {refused} flips refused, {cut} cut and reported");
    assert!(refused > 4000 && cut > 100);
}

#[test]
fn zeroed_and_swapped_sectors_are_seen() {
    for is_clean in [true, false] {
        let still = Still::after(&small(), is_clean);
        let mut noticed = 0;
        for (path, len) in still.disk.files() {
            for size in [512, 4096] {
                for at in (0..len).step_by(size as usize) {
                    let bytes = still.disk.read(&path).unwrap();
                    let block = |at: u64| {
                        let end = (at + size).min(len) as usize;
                        bytes.get(at as usize..end).unwrap_or_default().to_vec()
                    };
                    let zeroed = still.disk.kill_clone();
                    zeroed.overwrite(&path, at, &vec![0; block(at).len()]).unwrap();
                    let case = format!("{path:?}, {at} zeroed");
                    noticed += u64::from(still.hold_below(&zeroed, still.switched, &case));
                    if block(at + size).len() == block(at).len() {
                        let swapped = still.disk.kill_clone();
                        swapped.overwrite(&path, at, &block(at + size)).unwrap();
                        swapped.overwrite(&path, at + size, &block(at)).unwrap();
                        let case = format!("{path:?}, {at} swapped with the next");
                        noticed += u64::from(still.hold_below(&swapped, still.switched, &case));
                    }
                }
            }
        }
        println!("clean {is_clean}: {noticed} zeroed or swapped blocks noticed");
        assert!(noticed > 20);
    }
}

#[test]
fn a_file_cut_emptied_deleted_or_replaced_is_noticed() {
    for is_clean in [true, false] {
        let still = Still::after(&small(), is_clean);
        let mut noticed = 0;
        for (path, len) in still.disk.files() {
            let mut hold = |what: &str, damage: &dyn Fn(&MemoryStorage)| {
                let disk = still.disk.kill_clone();
                damage(&disk);
                let is_noticed = still.hold(&disk, &format!("{path:?} {what}"));
                noticed += u64::from(is_noticed);
                is_noticed
            };
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_listed =
                still.listed.iter().any(|listed| segment::file_name(listed.ordinal) == name);
            let is_needed = is_listed || name == "MANIFEST";
            for cut in [0, 1, 64, 127, 128, 200, len / 2, len - 1] {
                let is_noticed = hold(&format!("cut to {cut}"), &|disk| {
                    disk.set_len(&path, cut).unwrap();
                });
                assert!(is_noticed || name != "MANIFEST" || cut > 200, "{path:?} cut to {cut}");
                assert!(is_noticed || !is_listed, "{path:?} cut to {cut}");
            }
            let is_noticed = hold("deleted", &|disk| disk.delete(&path).unwrap());
            assert!(is_noticed || !is_needed, "{path:?} deleted");
            let is_noticed = hold("a directory", &|disk| disk.replace_by_dir(&path).unwrap());
            assert!(is_noticed || !is_needed, "{path:?} replaced by a directory");
            let is_noticed = hold("grown", &|disk| disk.overwrite(&path, len, b"more").unwrap());
            assert!(is_noticed || name != "MANIFEST", "{path:?} grown");
        }
        println!("clean {is_clean}: {noticed} damaged files noticed");
    }
}

#[test]
fn a_file_exchanged_with_one_of_another_store_is_noticed() {
    for is_clean in [true, false] {
        let still = Still::after(&small(), is_clean);
        let mut other = World::new();
        other.seed = 77;
        let mut player = Player::new(other);
        player.play(&small()).unwrap();
        let other = Still::new(player, is_clean);
        for path in paths(&still.disk) {
            for other_path in paths(&other.disk) {
                let disk = still.disk.kill_clone();
                disk.write_file(&path, &other.disk.read(&other_path).unwrap()).unwrap();
                let is_noticed =
                    still.hold(&disk, &format!("{path:?} by another's {other_path:?}"));
                let name = path.file_name().unwrap().to_str().unwrap();
                let is_spare = name.starts_with("spare-") || name == "MANIFEST.next";
                assert!(is_noticed || is_spare, "{path:?} by another's {other_path:?}");
            }
        }
        for a in paths(&still.disk) {
            for b in paths(&still.disk) {
                let disk = still.disk.kill_clone();
                disk.exchange_bytes(&a, &b).unwrap();
                still.hold(&disk, &format!("{a:?} exchanged with {b:?}"));
            }
        }
    }
}

#[test]
fn a_file_exchanged_with_an_older_one_is_noticed_or_without_effect() {
    let ops: Vec<Op> = small().into_iter().chain(workload()).collect();
    for is_clean in [true, false] {
        let mut player = Player::new(World::new());
        let mut versions: BTreeMap<PathBuf, Vec<Vec<u8>>> = BTreeMap::new();
        for op in &ops {
            player.op(*op).unwrap();
            for path in paths(&player.world.disk) {
                let bytes = player.world.disk.read(&path).unwrap();
                let all = versions.entry(path).or_default();
                if all.last() != Some(&bytes) {
                    all.push(bytes);
                }
            }
        }
        let still = Still::new(player, is_clean);
        let (mut noticed, mut harmless) = (0, 0);
        for (path, older) in &versions {
            let in_use = log_dir().join(segment::file_name(still.active));
            if *path == in_use || still.disk.read(path).is_err() {
                continue;
            }
            for (index, bytes) in older.iter().enumerate() {
                let disk = still.disk.kill_clone();
                disk.write_file(path, bytes).unwrap();
                let is_noticed = still.hold(&disk, &format!("{path:?}, version {index}"));
                *(if is_noticed { &mut noticed } else { &mut harmless }) += 1;
            }
        }
        println!("clean {is_clean}: {noticed} older files noticed, {harmless} without effect");
        assert!(noticed > 20);
    }
}

/// Old bodies lie in reused blocks of a file system; here they are written on purpose, in spares and after the end, at
/// the offsets they had. Salt and LSN show that they are no records.
#[test]
fn stale_bytes_are_never_records() {
    let mut player = Player::new(World::new());
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let ops: Vec<Op> = small().into_iter().chain(workload()).collect();
    let (mut laid, mut checked) = (0, 0);
    for op in ops {
        // A clean end would find such bytes at its next open and refuse; this test is about kills.
        if matches!(op, Op::Reopen | Op::Look) {
            continue;
        }
        player.op(op).unwrap();
        let disk = player.world.disk.clone();
        for path in paths(&disk) {
            let bytes = disk.read(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            if segment::ordinal_of(name).is_some() {
                bodies.push(bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default().to_vec());
            } else if name.starts_with("spare-") && !bodies.is_empty() {
                let body = &bodies[laid % bodies.len()];
                let room = bytes.len() - SEGMENT_HEADER_BYTES;
                let body = body.get(..room.min(body.len())).unwrap();
                disk.overwrite(&path, SEGMENT_HEADER_BYTES as u64, body).unwrap();
                laid += 1;
            }
        }
        bodies.sort();
        bodies.dedup();
        if matches!(op, Op::Claim(_) | Op::Batch(_)) {
            checked += 1;
            check(&disk.kill_clone(), &player.history, Fate::Killed).unwrap();
        }
    }
    println!("{laid} stale bodies laid, {checked} kills checked");
    assert!(laid > 10 && checked > 8);
}

/// Two lives after one crash give segments with the same store, ordinal, base and LSNs. Only the salt distinguishes them.
#[test]
fn records_of_the_same_lsn_from_another_life_are_never_valid() {
    let mut player = Player::new(World::new());
    player.play(&small()).unwrap();
    let live = |seed: u64, ops: &[Op]| {
        let mut world = World::over(player.world.disk.kill_clone(), 0);
        world.seed = seed;
        world.steps = false;
        let mut next = Player::after(world, player.history.clone(), Fate::Killed);
        next.play(ops).unwrap();
        Still::new(next, false)
    };
    let one = live(100, &[Op::Claim(Sync)]);
    let two = live(200, &[Op::Claim(Sync), Op::Batch(200), Op::Pass(20), Op::Batch(100)]);
    assert_eq!(one.active, two.active);
    let path = log_dir().join(segment::file_name(one.active));
    let of =
        |still: &Still| still.listed.iter().find(|l| l.ordinal == still.active).copied().unwrap();
    assert_eq!(of(&one).base, of(&two).base);
    let end = one.records_end(&of(&one));
    assert!(two.records_end(&of(&two)) > end + 300);
    let theirs = two.disk.read(&path).unwrap();
    one.disk.overwrite(&path, end, &theirs[end as usize..]).unwrap();
    let checked = check(&one.disk, &one.history, Fate::Killed).unwrap();
    let cut = checked.report.cut.unwrap();
    assert_eq!((cut.offset, cut.whole_records), (end, 0));
}

/// A whole record at another place of its own segment: only its LSN shows it.
#[test]
fn a_record_moved_within_its_segment_is_never_valid() {
    use Op::*;
    for is_clean in [true, false] {
        let still =
            Still::after(&[Claim(Sync), Forget(Sync), Forget(Sync), Forget(Flush)], is_clean);
        let listed = still.listed[0];
        let segment = still.segment(&listed);
        let bytes = still.disk.read(&segment.path).unwrap();
        let len = still.history.items[&1].draft().len();
        let (from, end) = (segment.offset(still.seen[1].1), still.records_end(&listed));
        let record = &bytes[from as usize..(from + len) as usize];
        for to in [segment.offset(still.seen[2].1), segment.offset(still.seen[3].1), end] {
            let disk = still.disk.kill_clone();
            disk.overwrite(&segment.path, to, record).unwrap();
            match still.open_damaged(&disk) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
                Ok((ids, report)) => {
                    let before = still.seen.iter().filter(|(_, lsn)| segment.offset(*lsn) < to);
                    assert_eq!((is_clean, ids.len()), (false, before.count()), "moved to {to}");
                    assert_eq!(report.cut.unwrap().offset, to);
                }
            }
        }
    }
}

/// All records of an idle store are covered: any that vanish are reported lost.
#[test]
fn after_idling_every_lost_record_is_a_loss() {
    use Op::*;
    let ops = [Claim(Sync), Claim(Flush), End(Lazy, 100), Pass(1), Pass(1000), Pass(20)];
    let still = Still::after(&ops, false);
    let listed = still.listed[0];
    let (id, last) = *still.seen.last().unwrap();
    assert!(last < still.covered, "{id} is not marked");
    let segment = still.segment(&listed);
    for cut_at in [segment.offset(last), segment.offset(last) + 24, segment.offset(still.seen[0].1)]
    {
        let disk = still.disk.kill_clone();
        // Lost with all that follow, except for the note that covers it.
        disk.overwrite(&segment.path, cut_at, &[0; 16]).unwrap();
        let error = still.open_damaged(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.path(), Some(&*segment.path));
    }
    // The note itself is no loss.
    let disk = still.disk.kill_clone();
    let note = segment.offset(still.covered);
    disk.overwrite(&segment.path, note, &[0; 24]).unwrap();
    check(&disk, &still.history, Fate::Killed).unwrap();
}

/// A torn tail is no damage: unsynced bytes may vanish from any byte on, and the cut is reported.
#[test]
fn a_torn_tail_is_cut_and_reported_wherever_it_is_torn() {
    use Op::*;
    let ops =
        [Claim(Sync), End(Sync, 100), Claim(Flush), Batch(200), Claim(Flush), End(Flush, 300)];
    let still = Still::after(&ops, false);
    let listed = still.listed[0];
    let segment = still.segment(&listed);
    let (from, end) = (segment.offset(still.covered), still.records_end(&listed));
    assert!(end > from + 300);
    for at in from..end {
        let disk = still.disk.kill_clone();
        disk.overwrite(&segment.path, at, &vec![0; (end - at) as usize]).unwrap();
        let (ids, report) = still.open_damaged(&disk).unwrap();
        let whole = still.seen.iter().filter(|(id, lsn)| {
            let len = still.history.items[id].draft().len();
            segment.offset(*lsn) + len <= at
        });
        // Zeros at the end of a record may have been there before.
        assert!(ids.len() >= whole.count(), "torn at {at}: {ids:?}");
        match report.cut {
            Some(cut) => assert!(cut.offset <= at && cut.offset + cut.bytes <= end),
            None => assert!(
                still.disk.read(&segment.path).unwrap()[..at as usize]
                    .iter()
                    .rev()
                    .take(300)
                    .any(|b| *b != 0)
            ),
        }
    }
}

/// After a clean close there is no torn tail: every missing byte is a loss.
#[test]
fn after_a_clean_close_every_missing_tail_is_a_loss() {
    use Op::*;
    let still = Still::after(&[Claim(Sync), Claim(Flush), End(Lazy, 100)], true);
    let listed = still.listed[0];
    let segment = still.segment(&listed);
    let end = still.records_end(&listed);
    let bytes = still.disk.read(&segment.path).unwrap();
    for at in SEGMENT_HEADER_BYTES as u64..end {
        let disk = still.disk.kill_clone();
        let torn = &bytes[at as usize..end as usize];
        if torn.iter().all(|byte| *byte == 0) {
            continue;
        }
        disk.overwrite(&segment.path, at, &vec![0; torn.len()]).unwrap();
        let error = still.open_damaged(&disk).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(&*segment.path)));
    }
}

/// Headers that contradict each other were listed as they are: reported as repaired, and no open accepted the list.
#[test]
fn headers_that_form_no_list_are_repaired_by_new_segments() {
    let still = Still::after(&small(), true);
    let disk = still.disk.kill_clone();
    let manifest = manifest::load(&disk, dir()).unwrap().unwrap();
    let ahead = still.listed.last().unwrap();
    let used = still.listed.iter().find(|listed| listed.ordinal == still.active).unwrap();
    // It begins within the one before, and holds a record.
    let identity =
        Identity { base: used.base.plus(still.records_end(used) - 8), ..Identity::of(ahead) };
    let path = log_dir().join(segment::file_name(ahead.ordinal));
    disk.overwrite(&path, 0, &identity.encode(manifest.store, &manifest.secrets, Lsn::ZERO))
        .unwrap();
    let (mut bytes, start) = (Vec::new(), identity.base.plus(SEGMENT_HEADER_BYTES as u64));
    let seal = identity.seal(manifest.store);
    still.history.items[&1].draft().seal(&mut bytes, start, start, &seal);
    disk.overwrite(&path, SEGMENT_HEADER_BYTES as u64, &bytes).unwrap();
    disk.delete(&manifest::path(dir())).unwrap();
    let seams = World::over(disk.clone(), 5000).seams();
    let found = survey::survey(&disk, dir()).unwrap();
    assert!(found.can_be_relisted() && !found.has_lost_records());
    assert!(!found.relist(&seams, dir(), Vec::new(), 1).unwrap(), "listed as it is");
    assert!(manifest::load(&disk, dir()).unwrap().is_none());
    let moved = found.salvage(&seams, dir(), &SIZES, Vec::new(), 1, &mut |_, _| Ok(())).unwrap();
    assert_eq!(moved as usize, still.ids().len() + 1);
    let (_, _, seen) = peek(&disk, &still.history).unwrap();
    let ids: Vec<u32> = seen.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [still.ids(), vec![1]].concat());
}

/// A clean close leaves the segment ahead empty. Records in it mean that the manifest is older than the log.
#[test]
fn after_a_clean_close_the_segment_ahead_is_empty_or_the_manifest_is_older() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1)]).unwrap();
    while player.opened.as_ref().unwrap().log.rooms().prepare_ahead().unwrap() == Due::Now {}
    let still = Still::new(player, true);
    let ahead = still.listed.last().unwrap();
    assert!(ahead.ordinal > still.active);
    let path = still.segment(ahead).path;
    for at in [SEGMENT_HEADER_BYTES as u64, 1000, limits::PAGE_BYTES as u64 - 1] {
        let disk = still.disk.kill_clone();
        disk.overwrite(&path, at, b"x").unwrap();
        let error = still.open_damaged(&disk).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(at)));
        assert_eq!(error.path(), Some(&*path));
    }
}

/// A survey of the disk without its manifest.
fn survey_unlisted(disk: &MemoryStorage) -> survey::Survey<'_> {
    disk.delete(&manifest::path(dir())).unwrap();
    survey::survey(disk, dir()).unwrap()
}

/// A last segment cut in the unused space after its records has lost nothing; but no open accepts it as it is.
#[test]
fn a_last_segment_cut_in_its_unused_space_is_no_loss_and_not_listed_as_it_is() {
    let still = Still::after(&small(), false);
    let used = still.listed.iter().find(|listed| listed.ordinal == still.active).unwrap();
    let path = log_dir().join(segment::file_name(used.ordinal));
    let (disk, uncut) = (still.disk.kill_clone(), still.disk.kill_clone());
    let whole = survey_unlisted(&uncut);
    assert!(whole.can_be_relisted() && !whole.has_lost_records());
    disk.set_len(&path, still.records_end(used) + 64).unwrap();
    let cut = survey_unlisted(&disk);
    assert!(!cut.can_be_relisted() && !cut.has_lost_records());
}

/// A recovery that ended before its switch has left copies, whose originals are all there. They are no part of the log,
/// but their watermarks count: they show how far it was durable.
#[test]
fn omitted_copies_show_how_far_the_log_was_durable() {
    let still = Still::after(&small(), false);
    let manifest = manifest::load(&still.disk, dir()).unwrap().unwrap();
    let used = still.listed.iter().find(|listed| listed.ordinal == still.active).unwrap();
    let (segment, end) = (still.segment(used), still.records_end(used));
    let (_, last) = *still.seen.last().unwrap();
    assert!(last >= still.covered);
    let copy = |disk: &MemoryStorage, watermark: Lsn| {
        let ordinal = manifest.next_ordinal;
        let identity = Identity { ordinal, base: manifest.extent, capacity: 1 << 16, salt: 5 };
        let mut spare = segment::Spare::prepare(disk, &log_dir(), 77, 1 << 16).unwrap();
        let (store, secrets) = (manifest.store, manifest.secrets);
        let to = spare.activate(disk, &log_dir(), identity, store, &secrets, used.base).unwrap();
        let (_, first) = still.seen.iter().find(|(_, lsn)| *lsn > used.base).unwrap();
        let mut bytes = Vec::new();
        let sealed = segment.read(*first, |record, _| {
            let body = record.body().unwrap();
            Draft::copy(&record, &body).seal(&mut bytes, identity.start(), watermark, &to.seal);
            Ok(())
        });
        sealed.unwrap();
        disk.overwrite(&to.path, SEGMENT_HEADER_BYTES as u64, &bytes).unwrap();
    };
    for (watermark, is_loss) in [(still.covered, false), (used.base.plus(end), true)] {
        let disk = still.disk.kill_clone();
        disk.flip(&segment.path, segment.offset(last) + 30, 1).unwrap();
        copy(&disk, watermark);
        let found = survey_unlisted(&disk);
        assert_eq!(found.has_lost_records(), is_loss, "{:?}", found.damages);
    }
}

/// With a clock set back, new segments would get positions already given out.
#[test]
fn new_segments_of_a_repair_begin_after_every_number_ever_listed() {
    let still = Still::after(&small(), false);
    let disk = still.disk.kill_clone();
    let found = survey::survey(&disk, dir()).unwrap();
    let extent = found.extent();
    let world = World::over(disk.clone(), 0);
    found.salvage(&world.seams(), dir(), &SIZES, Vec::new(), 1, &mut |_, _| Ok(())).unwrap();
    let manifest = manifest::load(&disk, dir()).unwrap().unwrap();
    assert!(manifest.segments[0].base >= extent, "{manifest:?}");
}
