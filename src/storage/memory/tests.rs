//! Tests that the simulated disk keeps its promises.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Crash, DataFate, MemoryStorage, NameFate};
use crate::storage::{Access, File, Storage, write_all_at};

pub(super) fn p(path: &str) -> &Path {
    Path::new(path)
}

/// A file whose name and bytes are durable.
pub(super) fn synced(disk: &MemoryStorage, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.create(p(path)).unwrap();
    write_all_at(&*file, bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(p(path).parent().unwrap()).unwrap();
    file
}

pub(super) fn names(disk: &MemoryStorage) -> Vec<String> {
    disk.files().into_iter().map(|(path, _)| path.display().to_string()).collect()
}

pub(super) fn data(data: DataFate) -> Crash {
    Crash { data, names: NameFate::All }
}

fn named(names: NameFate) -> Crash {
    Crash { data: DataFate::All, names }
}

// Names.

#[test]
fn a_name_is_lost_without_its_directorys_sync() {
    let disk = MemoryStorage::new();
    let file = disk.create(p("/a")).unwrap();
    file.write_at(b"x", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(names(&disk.crash_clone(named(NameFate::None))), [""; 0]);
    assert_eq!(names(&disk.crash_clone(named(NameFate::All))), ["/a"]);
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"x");
}

#[test]
fn a_link_is_a_second_name_of_the_same_file() {
    let disk = MemoryStorage::new();
    disk.create_dir(p("/d")).unwrap();
    let file = synced(&disk, "/a", b"x");
    let used = (disk.bytes_used(), disk.nodes_used());
    disk.link(p("/a"), p("/d/b")).unwrap();
    assert_eq!((disk.bytes_used(), disk.nodes_used()), used);
    assert_eq!(names(&disk.crash_clone(named(NameFate::None))), ["/a"]);
    assert_eq!(names(&disk.crash_clone(named(NameFate::All))), ["/a", "/d/b"]);
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), ["/a", "/d/b"]);
    // Written under either name, and there as long as one of them is, whoever boots.
    file.write_at(b"y", 0).unwrap();
    file.sync_data().unwrap();
    drop(file);
    let booted = disk.crash_clone(Crash::NONE);
    for disk in [disk, booted] {
        disk.remove(p("/a")).unwrap();
        assert_eq!(disk.read(p("/d/b")).unwrap(), b"y");
        assert_eq!((disk.bytes_used(), disk.nodes_used()), used);
        disk.remove(p("/d/b")).unwrap();
        assert!(disk.bytes_used() < used.0 && disk.nodes_used() < used.1);
        let error = |from: &str, to: &str| disk.link(p(from), p(to)).unwrap_err().kind();
        assert_eq!(error("/a", "/c"), ErrorKind::NotFound);
        assert_eq!(error("/d", "/c"), ErrorKind::PermissionDenied);
        disk.create(p("/c")).unwrap();
        assert_eq!(error("/c", "/d"), ErrorKind::AlreadyExists);
    }
}

#[test]
fn a_directorys_own_name_needs_its_parents_sync() {
    let disk = MemoryStorage::new();
    disk.create_dir(p("/d")).unwrap();
    synced(&disk, "/d/a", b"x");
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), [""; 0]);
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), ["/d/a"]);
}

#[test]
fn a_removed_name_comes_back_with_its_bytes() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/a", b"old"));
    disk.remove(p("/a")).unwrap();
    assert_eq!(disk.open(p("/a"), Access::Read).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.crash_clone(named(NameFate::None)).read(p("/a")).unwrap(), b"old");
    assert_eq!(names(&disk.crash_clone(named(NameFate::All))), [""; 0]);
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), [""; 0]);
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/MANIFEST", b"old"));
    drop(synced(&disk, "/new", b"new"));
    disk.rename(p("/new"), p("/MANIFEST")).unwrap();
    let mut states = BTreeSet::new();
    for crash in disk.crashes(50) {
        let after = disk.crash_clone(crash);
        states.insert((names(&after), after.read(p("/MANIFEST")).unwrap()));
    }
    let both = [
        (vec!["/MANIFEST".to_owned()], b"new".to_vec()),
        (vec!["/MANIFEST".to_owned(), "/new".to_owned()], b"old".to_vec()),
    ];
    assert_eq!(states, BTreeSet::from(both));
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/MANIFEST")).unwrap(), b"new");
}

#[test]
fn an_exchange_is_whole_or_not_at_all_and_takes_no_space() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/MANIFEST", b"old"));
    drop(synced(&disk, "/new", b"new"));
    disk.set_bytes_max(disk.bytes_used());
    disk.exchange(p("/new"), p("/MANIFEST")).unwrap();
    let read = |disk: &MemoryStorage| ["/MANIFEST", "/new"].map(|path| disk.read(p(path)).unwrap());
    let (old, new) = (b"old".to_vec(), b"new".to_vec());
    assert_eq!(read(&disk), [new.clone(), old.clone()]);
    let states: BTreeSet<_> =
        disk.crashes(50).into_iter().map(|crash| read(&disk.crash_clone(crash))).collect();
    assert_eq!(states, BTreeSet::from([[old.clone(), new.clone()], [new.clone(), old.clone()]]));
    // Both keep their blocks, under either name.
    for path in ["/MANIFEST", "/new"] {
        disk.open(p(path), Access::ReadWrite).unwrap().write_at(&[7; 4096], 0).unwrap();
    }
    assert_eq!((disk.bytes_used(), disk.nodes_used()), (8192, 2));
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(read(&disk.crash_clone(Crash::NONE)), [new, old]);
}

#[test]
fn an_exchange_keeps_its_order_among_changes_of_either_name() {
    let disk = MemoryStorage::new();
    for name in ["/x", "/y", "/z"] {
        drop(synced(&disk, name, name.as_bytes()));
    }
    disk.exchange(p("/x"), p("/y")).unwrap();
    disk.rename(p("/z"), p("/y")).unwrap();
    let read = |crash| {
        let after = disk.crash_clone(crash);
        ["/x", "/y", "/z"].map(|path| {
            after.read(p(path)).map_or(String::new(), |bytes| String::from_utf8(bytes).unwrap())
        })
    };
    // The rename alone would lose what the exchange moved to /x.
    assert_eq!(read(named(NameFate::OneKept(1))), ["/y", "/z", ""]);
    assert_eq!(read(named(NameFate::OneLost(0))), ["/x", "/y", "/z"]);
    let states: BTreeSet<_> = disk.crashes(100).into_iter().map(read).collect();
    let all = [["/x", "/y", "/z"], ["/y", "/x", "/z"], ["/y", "/z", ""]];
    assert_eq!(states, all.map(|state| state.map(str::to_owned)).into());
}

#[test]
fn an_exchange_between_directories_is_synced_by_either() {
    for synced_dir in ["/d", "/e"] {
        let disk = MemoryStorage::new();
        for dir in ["/d", "/e"] {
            disk.create_dir(p(dir)).unwrap();
        }
        disk.sync_dir(p("/")).unwrap();
        drop((synced(&disk, "/d/a", b"a"), synced(&disk, "/e/b", b"b")));
        disk.exchange(p("/d/a"), p("/e/b")).unwrap();
        disk.sync_dir(p(synced_dir)).unwrap();
        let after = disk.crash_clone(Crash::NONE);
        assert_eq!(after.read(p("/d/a")).unwrap(), b"b");
        assert_eq!(after.read(p("/e/b")).unwrap(), b"a");
        assert_eq!(disk.unsynced_names(), 0);
    }
}

#[test]
fn a_disk_can_lack_exchange() {
    let disk = MemoryStorage::new();
    drop((synced(&disk, "/a", b"a"), synced(&disk, "/b", b"b")));
    disk.set_no_exchange();
    for disk in [disk.kill_clone(), disk.crash_clone(Crash::NONE), disk] {
        let refused = disk.exchange(p("/a"), p("/b")).unwrap_err();
        assert!(crate::storage::cannot_exchange(&refused));
        assert_eq!((disk.read(p("/a")).unwrap(), disk.unsynced_names()), (b"a".to_vec(), 0));
    }
}

#[test]
fn a_durable_rename_of_unsynced_bytes_gives_an_empty_file() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/MANIFEST", b"old"));
    let file = disk.create(p("/new")).unwrap();
    file.write_at(b"new", 0).unwrap();
    disk.rename(p("/new"), p("/MANIFEST")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/MANIFEST")).unwrap(), b"");
    assert_eq!(disk.crash_clone(data(DataFate::Zeros)).read(p("/MANIFEST")).unwrap(), [0; 3]);
}

#[test]
fn names_of_different_files_are_kept_and_lost_independently() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/old", b""));
    disk.create(p("/a")).unwrap();
    disk.create(p("/b")).unwrap();
    disk.remove(p("/old")).unwrap();
    let states: BTreeSet<_> =
        (0..200).map(|seed| names(&disk.crash_clone(Crash::seeded(seed)))).collect();
    assert_eq!(states.len(), 8);
    assert_eq!(names(&disk.crash_clone(named(NameFate::OneLost(0)))), ["/b"]);
    assert_eq!(names(&disk.crash_clone(named(NameFate::OneKept(1)))), ["/b", "/old"]);
    assert_eq!(names(&disk.crash_clone(named(NameFate::Prefix(2)))), ["/a", "/b", "/old"]);
}

#[test]
fn changes_of_one_name_keep_their_order() {
    let disk = MemoryStorage::new();
    for name in ["/x", "/y", "/z"] {
        drop(synced(&disk, name, name.as_bytes()));
    }
    disk.rename(p("/x"), p("/y")).unwrap();
    disk.rename(p("/z"), p("/x")).unwrap();
    // The second alone would lose what was at /x, which the first had moved.
    for crash in disk.crashes(100) {
        let after = disk.crash_clone(crash);
        let bytes: BTreeSet<_> =
            names(&after).iter().map(|name| after.read(p(name)).unwrap()).collect();
        assert!(bytes.contains(&b"/x"[..]) && bytes.contains(&b"/z"[..]), "{crash:?}: {bytes:?}");
    }
    let late = disk.crash_clone(named(NameFate::OneKept(1)));
    assert_eq!(
        (late.read(p("/x")).unwrap(), late.read(p("/y")).unwrap()),
        (b"/z".to_vec(), b"/x".to_vec())
    );
    let lost = disk.crash_clone(named(NameFate::OneLost(0)));
    assert_eq!(names(&lost), ["/x", "/y", "/z"], "the second goes with the first");
}

#[test]
fn a_name_created_again_after_removal_is_either_file_never_both() {
    let disk = MemoryStorage::new();
    drop(synced(&disk, "/a", b"old"));
    disk.remove(p("/a")).unwrap();
    let file = disk.create(p("/a")).unwrap();
    file.write_at(b"new", 0).unwrap();
    file.sync_data().unwrap();
    let read = |fate| disk.crash_clone(named(fate)).read(p("/a")).ok();
    assert_eq!(read(NameFate::Prefix(0)).as_deref(), Some(&b"old"[..]));
    assert_eq!(read(NameFate::Prefix(1)), None);
    assert_eq!(read(NameFate::Prefix(2)).as_deref(), Some(&b"new"[..]));
}

#[test]
fn syncing_one_directory_leaves_the_others_names_waiting() {
    let disk = MemoryStorage::new();
    disk.create_dir(p("/d")).unwrap();
    disk.create_dir(p("/e")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    disk.create(p("/d/a")).unwrap();
    disk.create(p("/e/a")).unwrap();
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), ["/d/a"]);
    assert_eq!(disk.unsynced_names(), 1);
    // A rename between directories is one change: the sync of either keeps it whole, and the changes it depends on.
    disk.rename(p("/e/a"), p("/d/b")).unwrap();
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), ["/d/a", "/d/b"]);
    assert_eq!(disk.unsynced_names(), 0);
}

// Bytes.

#[test]
fn bytes_and_length_are_lost_without_sync() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"0123");
    file.write_at(b"XY45", 2).unwrap();
    assert_eq!(disk.read_device(p("/a")).unwrap(), b"0123");
    assert_eq!(disk.crash_clone(data(DataFate::None)).read(p("/a")).unwrap(), b"0123");
    assert_eq!(disk.crash_clone(data(DataFate::All)).read(p("/a")).unwrap(), b"01XY45");
    assert_eq!(disk.crash_clone(data(DataFate::Zeros)).read(p("/a")).unwrap(), b"0123\0\0");
    file.sync_data().unwrap();
    for crash in disk.crashes(20) {
        assert_eq!(disk.crash_clone(crash).read(p("/a")).unwrap(), b"01XY45", "{crash:?}");
    }
}

#[test]
fn syncing_a_file_keeps_neither_another_file_nor_a_name() {
    let disk = MemoryStorage::new();
    let a = synced(&disk, "/a", b"a");
    let b = synced(&disk, "/b", b"b");
    a.write_at(b"A", 0).unwrap();
    b.write_at(b"B", 0).unwrap();
    disk.create(p("/c")).unwrap().sync_data().unwrap();
    a.sync_data().unwrap();
    disk.sync_dir(p("/")).unwrap();
    let after = disk.crash_clone(Crash::NONE);
    assert_eq!(
        (after.read(p("/a")).unwrap(), after.read(p("/b")).unwrap()),
        (b"A".to_vec(), b"b".to_vec())
    );
    assert_eq!(names(&after), ["/a", "/b", "/c"]);
}

#[test]
fn any_open_file_syncs_what_another_wrote() {
    let disk = MemoryStorage::new();
    let a = synced(&disk, "/a", b"");
    a.write_at(b"x", 0).unwrap();
    disk.open(p("/a"), Access::Read).unwrap().sync_data().unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"x");
}

#[test]
fn sectors_are_lost_and_kept_one_by_one() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[b'o'; 1536]);
    // Sector 0 in part, sector 1 whole, half of sector 2, and a new sector 3 up to its middle.
    file.write_at(&[b'n'; 1700], 100).unwrap();
    assert_eq!(disk.unsynced_sectors(), 4);
    let expect = |parts: &[(u8, usize)]| -> Vec<u8> {
        parts.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect()
    };
    let read = |fate| disk.crash_clone(data(fate)).read(p("/a")).unwrap();
    assert_eq!(
        read(DataFate::OneLost(1)),
        expect(&[(b'o', 100), (b'n', 412), (b'o', 512), (b'n', 776)])
    );
    assert_eq!(read(DataFate::OneLost(3)), expect(&[(b'o', 100), (b'n', 1436), (0, 264)]));
    assert_eq!(read(DataFate::OneKept(0)), expect(&[(b'o', 100), (b'n', 412), (b'o', 1024)]));
    assert_eq!(read(DataFate::OneKept(3)), expect(&[(b'o', 1536), (b'n', 264)]));
    let writes = disk.unsynced_writes();
    assert_eq!(
        writes.iter().map(|write| (write.offset, write.len)).collect::<Vec<_>>(),
        [(100, 1700)]
    );
}

#[test]
fn a_prefix_is_cut_at_any_byte_across_files() {
    let disk = MemoryStorage::new();
    let (a, b) = (synced(&disk, "/a", b""), synced(&disk, "/b", b""));
    a.write_at(b"12", 0).unwrap();
    b.write_at(b"34", 0).unwrap();
    a.write_at(b"5", 2).unwrap();
    let state = |crash| {
        let after = disk.crash_clone(crash);
        let text = |path| String::from_utf8(after.read(p(path)).unwrap()).unwrap();
        text("/a") + "|" + &text("/b")
    };
    let states: Vec<String> = disk.byte_cuts().into_iter().map(state).collect();
    assert_eq!(states, ["|", "1|", "12|", "12|3", "12|34", "125|34"]);
}

#[test]
fn a_prefix_of_everything_takes_names_and_writes_in_their_one_order() {
    let disk = MemoryStorage::new();
    let file = disk.create(p("/a")).unwrap();
    file.write_at(b"1", 0).unwrap();
    disk.rename(p("/a"), p("/b")).unwrap();
    file.write_at(b"2", 1).unwrap();
    let states: BTreeSet<_> = disk
        .crashes(0)
        .into_iter()
        .filter(|crash| matches!(crash.names, NameFate::Prefix(_)))
        .map(|crash| {
            let after = disk.crash_clone(crash);
            let files = names(&after);
            files
                .first()
                .map(|name| name.clone() + &String::from_utf8_lossy(&after.read(p(name)).unwrap()))
        })
        .collect();
    assert_eq!(states.into_iter().flatten().collect::<Vec<_>>(), ["/a", "/a1", "/b1"]);
}

#[test]
fn seeded_crashes_give_each_sector_a_version_and_reach_all_combinations() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[0; 1024]);
    for version in 1..=2 {
        file.write_at(&[version; 1024], 0).unwrap();
    }
    let mut states = BTreeSet::new();
    for seed in 0..300 {
        let bytes = disk.crash_clone(Crash::seeded(seed)).read(p("/a")).unwrap();
        assert_eq!(bytes.len(), 1024);
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0] && *byte <= 2));
        }
        states.insert((bytes[0], bytes[512]));
    }
    assert_eq!(states.len(), 9);
}

#[test]
fn a_sector_never_holds_a_later_write_without_an_earlier_one() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[0; 512]);
    file.write_at(b"1", 10).unwrap();
    file.write_at(b"2", 20).unwrap();
    let states: BTreeSet<_> = (0..100)
        .map(|seed| {
            let bytes = disk.crash_clone(Crash::seeded(seed)).read(p("/a")).unwrap();
            (bytes[10], bytes[20])
        })
        .collect();
    assert_eq!(states, BTreeSet::from([(0, 0), (b'1', 0), (b'1', b'2')]));
}

#[test]
fn a_truncation_is_lost_without_sync_and_kept_before_what_follows_it() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[b'o'; 2048]);
    file.truncate(600).unwrap();
    let lens: BTreeSet<_> = disk
        .crashes(50)
        .into_iter()
        .map(|crash| disk.crash_clone(crash).read(p("/a")).unwrap().len())
        .collect();
    assert_eq!(lens, BTreeSet::from([600, 2048]));
    // Written after the cut: the old bytes there must not come back in between.
    file.write_at(b"n", 2000).unwrap();
    for crash in disk.crashes(200).into_iter().chain(disk.byte_cuts()) {
        let bytes = disk.crash_clone(crash).read(p("/a")).unwrap();
        let uncut = bytes == [b'o'; 2048];
        let cut = bytes.len() <= 2001
            && bytes.iter().enumerate().all(|(at, byte)| match at {
                0..600 => *byte == b'o',
                2000 => [0, b'n'].contains(byte),
                _ => *byte == 0,
            });
        assert!(uncut || (cut && bytes.len() >= 600), "{crash:?} {}", bytes.len());
    }
    file.sync_data().unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/a")).unwrap().len(), 2001);
}

#[test]
fn growing_by_truncate_makes_zeros() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"x");
    file.truncate(4).unwrap();
    assert_eq!(disk.read(p("/a")).unwrap(), b"x\0\0\0");
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"x");
    assert_eq!(disk.bytes_used(), 4096);
}

// The page cache lies.

#[test]
fn after_a_lying_sync_the_bytes_are_seen_but_never_durable() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"old");
    let other = disk.open(p("/a"), Access::ReadWrite).unwrap();
    disk.lie_at_sync(1);
    file.write_at(b"one", 0).unwrap();
    file.sync_data().unwrap();
    file.write_at(b"two", 0).unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    file.sync_data().unwrap();
    assert_eq!(other.sync_data().unwrap_err().raw_os_error(), Some(5), "once per open file");
    other.sync_data().unwrap();
    disk.open(p("/a"), Access::Read).unwrap().sync_data().unwrap();
    assert_eq!(disk.read(p("/a")).unwrap(), b"two");
    assert_eq!(disk.kill_clone().read(p("/a")).unwrap(), b"two");
    assert_eq!(disk.crash_clone(Crash::ALL).read(p("/a")).unwrap(), b"one");
    assert_eq!(disk.kill_clone().crash_clone(Crash::ALL).read(p("/a")).unwrap(), b"one");
    disk.evict_lost();
    assert_eq!(disk.read(p("/a")).unwrap(), b"one");
}

#[test]
fn sectors_written_again_after_a_lie_become_durable() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[b'o'; 1536]);
    disk.lie_at_sync(0);
    file.write_at(&[b'n'; 1536], 0).unwrap();
    assert!(file.sync_data().is_err());
    file.write_at(b"x", 600).unwrap();
    file.sync_data().unwrap();
    let after = disk.crash_clone(Crash::NONE).read(p("/a")).unwrap();
    assert_eq!(after[..512], [b'o'; 512]);
    assert_eq!((after[512], after[600], after[1023]), (b'n', b'x', b'n'));
    assert_eq!(after[1024..], [b'o'; 512]);
}

#[test]
fn appending_after_a_lie_leaves_a_hole_on_the_device() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"");
    disk.lie_at_sync(0);
    file.write_at(&[b'a'; 1024], 0).unwrap();
    assert!(file.sync_data().is_err());
    assert_eq!(disk.crash_clone(Crash::ALL).read(p("/a")).unwrap(), b"");
    file.write_at(&[b'b'; 512], 1024).unwrap();
    file.sync_data().unwrap();
    let after = disk.crash_clone(Crash::NONE).read(p("/a")).unwrap();
    assert_eq!((&after[..1024], &after[1024..]), (&[0; 1024][..], &[b'b'; 512][..]));
    assert_eq!(disk.read(p("/a")).unwrap()[..1024], [b'a'; 1024]);
}

#[test]
fn a_failed_write_back_is_reported_to_each_open_file_and_to_the_first_new_one() {
    let disk = MemoryStorage::new();
    let (a, b) = (synced(&disk, "/a", b"old"), disk.open(p("/a"), Access::Read).unwrap());
    a.write_at(b"new", 0).unwrap();
    disk.fail_writeback(p("/a")).unwrap();
    let c = disk.open(p("/a"), Access::Read).unwrap();
    assert!(c.sync_data().is_err(), "not reported yet");
    assert!(a.sync_data().is_err() && b.sync_data().is_err());
    assert!(a.sync_data().is_ok() && b.sync_data().is_ok() && c.sync_data().is_ok());
    assert!(disk.open(p("/a"), Access::Read).unwrap().sync_data().is_ok());
    assert_eq!(disk.crash_clone(Crash::ALL).read(p("/a")).unwrap(), b"old");
}

// Kills.

#[test]
fn a_kill_keeps_everything_written_and_unsynced_bytes_stay_unsynced() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"old");
    let _lock = disk.lock_dir(p("/")).unwrap();
    file.write_at(b"new!", 0).unwrap();
    disk.create(p("/b")).unwrap();
    let next = disk.kill_clone();
    assert_eq!((names(&next), next.read(p("/a")).unwrap()), (names(&disk), b"new!".to_vec()));
    next.lock_dir(p("/")).unwrap();
    assert_eq!(next.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"old");
    assert_eq!(names(&next.crash_clone(Crash::NONE)), ["/a"]);
    file.write_at(b"late", 0).unwrap();
    assert_eq!(next.read(p("/a")).unwrap(), b"new!", "old handles stay with the old disk");
    next.open(p("/a"), Access::Read).unwrap().sync_data().unwrap();
    assert_eq!(next.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"new!");
}

#[test]
fn a_crash_ends_unnamed_files_locks_and_unsynced_state() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[1; 5000]);
    let _lock = disk.lock_dir(p("/")).unwrap();
    disk.remove(p("/a")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(disk.bytes_used(), 8192, "open files keep their space");
    let after = disk.crash_clone(Crash::NONE);
    assert_eq!((after.bytes_used(), after.nodes_used(), after.unsynced_names()), (0, 0, 0));
    after.lock_dir(p("/")).unwrap();
    assert_eq!(after.crashes(0).len(), 3);
    drop(file);
    assert_eq!(disk.bytes_used(), 0);
}

// Space.

#[test]
fn a_full_disk_refuses_new_blocks_and_accepts_writes_in_place() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[0; 4096]);
    disk.set_bytes_max(8192);
    assert_eq!(file.write_at(&[1; 9000], 4000).unwrap(), 4192, "as much as fits");
    let full = file.write_at(b"x", 8192).unwrap_err();
    assert_eq!((full.kind(), full.raw_os_error()), (ErrorKind::StorageFull, Some(28)));
    assert_eq!(file.write_at(&[2; 8192], 0).unwrap(), 8192);
    file.sync_data().unwrap();
    let after = disk.crash_clone(Crash::NONE);
    let again = after.open(p("/a"), Access::ReadWrite).unwrap();
    assert_eq!(again.write_at(&[3; 8192], 0).unwrap(), 8192, "still allocated after a crash");
    assert!(again.write_at(b"x", 8192).is_err());
    file.truncate(100).unwrap();
    assert_eq!(file.write_at(b"x", 9000).unwrap(), 1, "truncation frees space");
    assert_eq!(
        file.write_at(b"x", 5000).unwrap_err().kind(),
        ErrorKind::StorageFull,
        "a hole needs space"
    );
    disk.set_bytes_max(u64::MAX);
    file.write_at(b"x", 5000).unwrap();
}

#[test]
fn removing_a_file_frees_its_space_once_no_handle_is_open() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", &[0; 4096]);
    disk.set_bytes_max(4096);
    let other = disk.create(p("/b")).unwrap();
    disk.remove(p("/a")).unwrap();
    assert_eq!(other.write_at(b"x", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    let map = file.map(4096).unwrap();
    drop(file);
    assert!(other.write_at(b"x", 0).is_err(), "a map holds it too");
    drop(map);
    other.write_at(b"x", 0).unwrap();
    assert_eq!(disk.create_dir(p("/d")).unwrap_err().kind(), ErrorKind::StorageFull);
}

#[test]
fn no_name_can_be_created_without_free_nodes() {
    let disk = MemoryStorage::new();
    let file = disk.create(p("/a")).unwrap();
    disk.set_nodes_max(1);
    assert_eq!(disk.create(p("/b")).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(disk.create_dir(p("/b")).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_at(b"x", 0).unwrap();
    disk.rename(p("/a"), p("/b")).unwrap();
    drop(file);
    disk.remove(p("/b")).unwrap();
    disk.create(p("/c")).unwrap();
}

// Locks, maps, limits of the simulation.

#[test]
fn a_directory_can_be_locked_once() {
    let disk = MemoryStorage::new();
    disk.create_dir(p("/d")).unwrap();
    let lock = disk.lock_dir(p("/d")).unwrap();
    assert_eq!(disk.clone().lock_dir(p("/d")).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(disk.lock_holder(p("/d")), Some(std::process::id()));
    disk.lock_dir(p("/")).unwrap();
    drop(lock);
    assert_eq!(disk.lock_holder(p("/d")), None);
    disk.lock_dir(p("/d")).unwrap();
    assert_eq!(disk.lock_dir(p("/x")).unwrap_err().kind(), ErrorKind::NotFound);
    disk.create(p("/f")).unwrap();
    assert_eq!(disk.lock_dir(p("/f")).unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn a_map_shows_later_writes_and_earlier_borrows_stay() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"0123456789");
    let map = file.map(8).unwrap();
    let early = map.bytes(0, 4).unwrap();
    file.write_at(b"xy", 5).unwrap();
    assert_eq!(map.bytes(4, 4).unwrap(), b"4xy7");
    file.write_at(b"z", 5).unwrap();
    assert_eq!(map.bytes(4, 4).unwrap(), b"4zy7");
    assert_eq!(map.bytes(4, 2).unwrap(), b"4z");
    assert_eq!((early, map.bytes(0, 4).unwrap()), (&b"0123"[..], &b"0123"[..]));
    assert_eq!((map.bytes(8, 1), map.bytes(7, 2), map.bytes(u64::MAX, 2)), (None, None, None));
    assert_eq!(map.bytes(8, 0).unwrap(), b"");
    disk.remove(p("/a")).unwrap();
    drop(file);
    assert_eq!(map.bytes(0, 4).unwrap(), b"0123");
    assert_eq!(synced(&disk, "/b", b"x").map(2).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_wild_offset_is_an_error_and_takes_no_memory() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"x");
    for offset in [u64::MAX, 1 << 62, 1 << 32] {
        assert_eq!(file.write_at(b"x", offset).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(file.read_at(&mut [0], offset).unwrap(), 0);
    }
    assert_eq!(file.truncate(u64::MAX).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert!(disk.open(p("/../a"), Access::Read).is_err());
}

// Changes from inside.

#[test]
fn damage_is_in_both_planes_and_survives_crashes() {
    let disk = MemoryStorage::new();
    let file = synced(&disk, "/a", b"0123");
    file.write_at(b"45", 4).unwrap();
    let (changes, trace) = (disk.changes(), disk.trace());
    disk.flip(p("/a"), 1, 0x80).unwrap();
    assert_eq!(disk.read(p("/a")).unwrap(), b"0\xb12345");
    disk.overwrite(p("/a"), 5, b"xyz").unwrap();
    disk.set_len(p("/a"), 7).unwrap();
    assert_eq!(disk.crash_clone(Crash::NONE).read(p("/a")).unwrap(), b"0\xb1234xy");
    assert!(disk.flip(p("/a"), 7, 1).is_err());
    disk.write_file(p("/b"), b"B").unwrap();
    disk.exchange_bytes(p("/a"), p("/b")).unwrap();
    assert_eq!(
        disk.crash_clone(Crash::NONE).files(),
        [(PathBuf::from("/a"), 1), (PathBuf::from("/b"), 7)]
    );
    disk.set_nodes_max(0);
    disk.replace_by_dir(p("/a")).unwrap();
    assert_eq!(disk.open(p("/a"), Access::Read).unwrap_err().kind(), ErrorKind::IsADirectory);
    disk.delete(p("/b")).unwrap();
    assert_eq!(names(&disk.crash_clone(Crash::NONE)), [""; 0]);
    assert_eq!((disk.changes(), disk.trace()), (changes, trace));
}

#[test]
fn deleting_a_directory_removes_everything_below_it() {
    let disk = MemoryStorage::new();
    disk.create_dir(p("/d")).unwrap();
    drop(synced(&disk, "/d/a", &[1; 100]));
    disk.delete(p("/d")).unwrap();
    assert_eq!((disk.nodes_used(), disk.bytes_used()), (0, 0));
    assert_eq!(disk.list(p("/")).unwrap(), []);
}
