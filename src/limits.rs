//! Every limit and default: name, unit, reason, and the relations between them.

use std::time::Duration;

/// Longest key. A key names an operation; anything longer is content, and belongs in the fingerprint.
pub(crate) const KEY_BYTES_MAX: usize = 4096;
/// Former versions that a namespace remembers, 16 bytes each.
pub(crate) const VERSIONS_MAX: usize = 64;

/// Longest owner label and longest reason: enough for a host, a process and a sentence.
pub(crate) const LABEL_BYTES_MAX: usize = 512;

/// Longest progress note kept with a claim.
pub(crate) const PROGRESS_BYTES_MAX: usize = 16 << 10;

/// Longest name of a step.
pub(crate) const STEP_NAME_BYTES_MAX: usize = 255;
/// Steps of a key that are announced at a time and have not ended: each record of the key repeats their names.
pub(crate) const ANNOUNCED_MAX: usize = 16;
/// Bytes that a record has for each of them: the length of its name, the name, and its input's fingerprint if it has one.
pub(crate) const fn announced_bytes(name: usize, has_input: bool) -> usize {
    1 + name + 1 + if has_input { 16 } else { 0 }
}
pub(crate) const ANNOUNCED_BYTES_MAX: usize =
    ANNOUNCED_MAX * announced_bytes(STEP_NAME_BYTES_MAX, true);
/// Longest stored key of a step: the key of its claim, the name, and the fields of `operation::step_key`.
pub(crate) const STEP_KEY_BYTES_MAX: usize = KEY_BYTES_MAX + STEP_NAME_BYTES_MAX + 10;
const _: () =
    assert!(STEP_NAME_BYTES_MAX <= u8::MAX as usize && STEP_KEY_BYTES_MAX <= u16::MAX as usize);

/// Metadata of an outcome: enough for a status and a handful of headers.
pub(crate) const META_COUNT_MAX: usize = 64;
pub(crate) const META_BYTES_MAX: usize = 8192;

/// Longest result by default: half the first segment, so that small stores stay small.
pub(crate) const RESULT_BYTES_MAX_DEFAULT: u32 = 512 * 1024;

/// A replayed result up to this long is copied: the copy takes a tenth of a microsecond, and a program that keeps many small
/// payloads keeps no segments with them. A longer one is shown where it lies.
pub(crate) const RESULT_COPIED_MAX: usize = 4096;

/// Longest result that can be asked for: a record must fit a segment of the largest size.
pub(crate) const RESULT_BYTES_MAX: u32 = 48 * 1024 * 1024;

/// Space a claim reserves for its result by default.
pub(crate) const RESERVE_BYTES_DEFAULT: u32 = 4096;

/// Claims leave this fraction of a segment, within the prepared space, to forgets and aborts: on a full disk, thousands
/// of those find space before one must wait for compaction.
pub(crate) const CLEARING_OF_A_SEGMENT: u64 = 4;

/// The size of a claim's record and of its key, by which `health` judges whether there is space for a claim.
pub(crate) const ORDINARY_CLAIM_BYTES: u64 = 512;
pub(crate) const ORDINARY_KEY_BYTES: usize = 64;

/// How long spares that a burst of claims needed are kept for the next burst.
pub(crate) const SPARES_MILLIS: u64 = 10_000;

/// The size of the first segment; later ones have a fraction of the log's size, up to `SEGMENT_BYTES_MAX_DEFAULT`.
pub(crate) const SEGMENT_BYTES_FIRST: u64 = 1 << 20;
/// Up to three segments on disk are still empty: the rest of the active one, the next one and a spare. If each had half
/// of the log's size, they alone would exceed the live bytes; larger numbers would mean more files and switches.
pub(crate) const SEGMENTS_OF_A_LOG: u64 = 8;
pub(crate) const SEGMENT_BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Bounds for the size that a user may set, and that a manifest may contain.
pub(crate) const SEGMENT_BYTES_LEAST: u64 = 16 << 10;
pub(crate) const SEGMENT_BYTES_MOST: u64 = 1 << 30;

/// Zeros are written page by page: larger writes leave large folios in the page cache, which are slower to sync.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A sync is due after this many unsynced bytes, or this long (milliseconds).
pub(crate) const UNSYNCED_BYTES_MAX: u64 = 4 << 20;
pub(crate) const UNSYNCED_MILLIS_MAX: u64 = 1000;

/// Observers are told of a sync that takes this long: a device that does so makes every claim at `Sync` slow.
pub(crate) const SLOW_SYNC_MILLIS: u64 = 1000;
/// The background tells observers the store's numbers at most this often: counting the keys takes a millisecond or two per million.
pub(crate) const GAUGES_MILLIS: u64 = 10_000;

/// A watermark is noted after this long without a new record.
pub(crate) const IDLE_NOTE_MILLIS: u64 = 10;

/// A time note is due this often, and whenever wall and store time have diverged by `TIME_DRIFT_MILLIS`.
pub(crate) const TIME_NOTE_MILLIS: u64 = 3_600_000;
pub(crate) const TIME_DRIFT_MILLIS: u64 = 1000;

/// How far store time may advance across a reboot, where only the wall clock measures it: one day.
pub(crate) const TIME_OFF_MILLIS_MAX: u64 = 86_400_000;

/// A close waits at least this long for calls in flight, whatever its deadline: long calls check every 50 ms, and this
/// is four times that. It may spend as much on reclaim.
pub(crate) const CLOSE_MILLIS_LEAST: u64 = 200;
/// A close waits at least this long for its own writes: a few syncs, each of which takes 100 ms on a slow disk.
pub(crate) const CLOSE_WRITES_MILLIS_LEAST: u64 = 2000;
const _: () = assert!(CLOSE_MILLIS_LEAST <= CLOSE_WRITES_MILLIS_LEAST);

/// Buffered bytes at which a writer at `Lazy` writes them itself.
pub(crate) const BUFFERED_BYTES_MAX: u64 = 256 << 10;

/// Bytes that may be placed and not yet written before further calls of tasks are placed only when they are waited for: many
/// times what one sync covers, and little memory.
pub(crate) const IN_FLIGHT_BYTES_MAX: u64 = 4 << 20;
const _: () = assert!(BUFFERED_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);

/// Full segments that are open at once, by a map or a descriptor each. A system gives 65,530 maps to a process by
/// default, and the allocator needs some.
pub(crate) const OPEN_SEGMENTS_MAX: usize = 1024;
/// Without maps, the limit is this fraction of the process's descriptors, and at least a few.
pub(crate) const SHARE_OF_FILES: u64 = 8;
pub(crate) const OPEN_SEGMENTS_LEAST: usize = 8;

/// Spares whose files are kept open, so that they become segments without a new descriptor. There are more spares only
/// while many large results are reserved.
pub(crate) const OPEN_SPARES: usize = 4;

/// Segments one manifest may list. At 64 MiB each that is a log of 4 TiB.
pub(crate) const SEGMENTS_MAX: usize = 1 << 16;

/// How full a table is: 41 keys in ten buckets of five slots. With more keys a bucket, more misses would read a second
/// one; with fewer, a key would take more than 16 bytes.
pub(crate) const TABLE_KEYS_PER_TEN_BUCKETS: u64 = 41;

/// Tables one manifest may list: like the digits of a binary counter, 2^60 keys need 60 of them.
pub(crate) const TABLES_MAX: usize = 64;

/// The most bytes that a key takes in a table, for estimates.
pub(crate) const TABLE_BYTES_PER_KEY: u64 = 16;

/// Buckets that a table may claim to have: 256 GiB of them.
pub(crate) const TABLE_BUCKETS_MAX: u64 = 1 << 32;

/// Keys that a file may claim to remember: 1 TiB of them.
pub(crate) const MEMORIES_MAX: u64 = 1 << 36;

/// Bytes of a table that are synced at once while other threads wait for syncs of the log.
pub(crate) const PIECE_BESIDE_SYNCS: u64 = 64 << 10;

/// Tables are written in pieces of this size.
pub(crate) const TABLE_PIECE_BYTES: usize = 64 << 10;

/// A checkpoint is due after so many bytes of log: roughly what an open after a kill has to read.
pub(crate) const CHECKPOINT_BYTES: u64 = 256 << 20;

/// How long an opening waits by default while another process has the store open: several short lives, one after the other.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// While it waits, it tries again after at most so many milliseconds, at random: those that wait don't try at the same time.
pub(crate) const LOCK_TRY_MILLIS_MAX: u64 = 20;

/// How much longer than its timeout an opening waits for readers, which have the lock shared for some microseconds at a time: as
/// long as the system may keep one from running in between.
pub(crate) const READER_NANOS_MAX: u64 = 1_000_000_000;

/// So many keys of a reader's walk are read before one check covers them: the check takes as long as a few of these reads. Their
/// results are in memory meanwhile.
pub(crate) const READER_STEPS: usize = 16;

/// A close leaves fewer bytes of log than this without a table: an open reads some hundred records in a fraction of the time
/// that a table costs, which is three syncs.
pub(crate) const UNSEALED_AT_CLOSE_BYTES: u64 = 64 << 10;

/// The memory that the index may take by default, and the memory that one key takes.
pub(crate) const INDEX_MEMORY_DEFAULT: u64 = 64 << 20;
pub(crate) const INDEX_BYTES_PER_KEY: u64 = 64;

/// No record about a key is shorter.
pub(crate) const RECORD_BYTES_LEAST: u64 = 40;

/// Slots that one step of a merge moves.
pub(crate) const MERGE_SLOTS: u64 = 1 << 16;

/// How many bytes a backup copies at a time; then it looks whether a close waits for it.
pub(crate) const BACKUP_PIECE_BYTES: usize = 256 << 10;

/// How many bytes of the oldest segment one step of compaction reads, and how fast it may move live records. A step
/// reads a page less than a reader reads at once, so that its last record seldom needs another read.
pub(crate) const COMPACTION_PIECE_BYTES: u64 = (256 << 10) - PAGE_BYTES as u64;
pub(crate) const COMPACTION_BYTES_PER_MILLI: u64 = 64 << 10;
/// Bytes that compaction judges before it yields the processor.
pub(crate) const COMPACTION_YIELD_BYTES: u64 = 16 << 10;

/// The live share of the log is estimated from this many keys, and again after `ESTIMATE_MILLIS`.
pub(crate) const ESTIMATE_SAMPLES: u64 = 1024;
/// The first sample, which suffices if the records are alike.
pub(crate) const ESTIMATE_SAMPLES_FEW: u64 = 128;
pub(crate) const ESTIMATE_MILLIS: u64 = 60_000;
/// Checkpoints that follow each other sooner share a sample of the live share, unless the log has grown by an eighth.
pub(crate) const SAMPLE_MILLIS: u64 = 1000;
/// Segments that an open prepares before it knows how much is live.
pub(crate) const SEGMENTS_UNSEEN: u64 = 4;
/// How long compaction rests after a pass over the whole log that reclaimed nothing.
pub(crate) const FUTILE_MILLIS: u64 = 3_600_000;

/// Probes by interpolation before a search continues by halving.
pub(crate) const INTERPOLATION_PROBES_MAX: u32 = 6;

/// Memories of expired keys end at multiples of this, because their files count in minutes.
pub(crate) const MEMORY_MILLIS: u64 = 60_000;

/// LSNs end here; then claims are refused.
pub(crate) const LSN_MAX: u64 = 1 << 63;
/// Store time ends in the year 10889, and stops there: records keep it in 48 bits.
pub(crate) const STORE_MILLIS_MAX: u64 = (1 << 48) - 1;

/// At each open, tokens start at the wall clock's milliseconds times this. No log grows as fast, so tokens never run
/// ahead of the clock while a log is open.
pub(crate) const TOKENS_A_MILLI: u64 = 1 << 20;
/// The clock's part is bounded, so that a wrong clock can't use up the tokens.
pub(crate) const TOKENS_BY_CLOCK_MAX: u64 = 1 << 62;
/// A clock an hour behind the tokens was set back, or the tokens ran ahead.
pub(crate) const TOKENS_CLOCK_OFF: u64 = 3_600_000 * TOKENS_A_MILLI;
/// The random step of an open whose clock is off: up to a minute. More than a copy is likely to have issued, and less
/// than usually passes between two boots of a machine without a clock of its own, so that a clock set right catches up.
pub(crate) const TOKEN_STEP_OFF: u64 = 1 << 36;

/// Longest message of an error that another process is told of, and the longest of a cause: a key that is shown escaped takes
/// five times its bytes, and a message shows two at most.
pub(crate) const ERROR_TEXT_BYTES_MAX: usize = 64 << 10;
/// Causes of an error that another process is told of. Errors of ours have one or two.
pub(crate) const ERROR_CAUSES_MAX: usize = 8;

/// The part of a frame between processes that its result doesn't take: what a request or a reply says beside it, or an error.
pub(crate) const FRAME_WORDS_BYTES_MAX: u32 = (STEP_KEY_BYTES_MAX
    + 4 * LABEL_BYTES_MAX
    + PROGRESS_BYTES_MAX
    + META_BYTES_MAX
    + 4 * META_COUNT_MAX
    + ANNOUNCED_BYTES_MAX
    + 8 * ANNOUNCED_MAX
    + (2 + ERROR_CAUSES_MAX) * (ERROR_TEXT_BYTES_MAX + 8)
    + 1024) as u32;
/// A frame has space for so many bytes of a list, however short the results are: a batch of thousands of calls, and as much as
/// may be in flight.
pub(crate) const FRAME_LIST_BYTES_MAX: u32 = 4 << 20;
const _: () = assert!(FRAME_LIST_BYTES_MAX as u64 <= IN_FLIGHT_BYTES_MAX);

/// Connections that wait to be accepted: more than join at once after a handover. The system may allow fewer.
pub(crate) const WAITING_CONNECTIONS_MAX: i32 = 1024;

/// Entries that a shard of the in-memory table keeps space for.
pub(crate) const SHARD_KEYS_LEAST: usize = 64;

/// Keys of a batch whose buckets are fetched at once, ahead of their lookups: with some tables as many reads as a
/// processor has in flight, and the lines are still in its nearest cache when they are used.
pub(crate) const LOOK_AHEAD_KEYS: usize = 16;

/// Shards of the in-memory table: enough that 64 threads on a few cores seldom contend.
pub(crate) const SHARDS: usize = 64;

const _: () = assert!(SHARDS.is_power_of_two());
const _: () = assert!((RESULT_BYTES_MAX_DEFAULT as u64) * 2 <= SEGMENT_BYTES_FIRST);
const _: () = assert!((RESULT_BYTES_MAX as u64) < SEGMENT_BYTES_MAX_DEFAULT);
const _: () = assert!(RESERVE_BYTES_DEFAULT <= RESULT_BYTES_MAX_DEFAULT);
const _: () = assert!(SEGMENT_BYTES_LEAST >= 4 * PAGE_BYTES as u64);
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(META_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(LABEL_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PROGRESS_BYTES_MAX <= u16::MAX as usize);

/// Calls of one guest that may be open: as many as a program has threads, and far below what memory holds.
pub(crate) const GUEST_CALLS_MAX: usize = 1024;
/// Bytes that wait to be sent to a guest, from where on nothing more is read from it.
pub(crate) const GUEST_OUT_BYTES_MAX: usize = 4 << 20;
/// Bytes that are read at once.
pub(crate) const GUEST_READ_BYTES: usize = 64 << 10;
/// How long a reader stays awake before it sleeps until something comes: an answer that needs no sync is there sooner.
pub(crate) const GUEST_AWAKE_NANOS: u64 = 50_000;
/// How long a reader sleeps at most, to see whether it is still needed.
pub(crate) const GUEST_WAIT: Duration = Duration::from_secs(1);
/// How long an opening waits for a host that has accepted it to answer.
pub(crate) const WELCOME_NANOS_MAX: u64 = 10_000_000_000;
/// Claims that a guest names in one frame: with the longest keys, a quarter of what a frame may hold.
pub(crate) const HELD_IN_FRAME: usize = 240;
const _: () = assert!(HELD_IN_FRAME * (STEP_KEY_BYTES_MAX + 64) < FRAME_LIST_BYTES_MAX as usize);
/// Keys that a guest asks for with the first page of a walk: many callers take only a few.
pub(crate) const PAGE_KEYS_FIRST: u32 = 64;
/// Keys of a page at most: each page costs the host a look at all keys in memory.
pub(crate) const PAGE_KEYS_MAX: usize = 8192;
/// Bytes of a page at most, unless it has one key.
pub(crate) const PAGE_BYTES_MAX: usize = FRAME_LIST_BYTES_MAX as usize;
/// For how long a guest that the next host refuses tries again before it refuses the calls that wait: as long as an opening does by
/// default.
pub(crate) const REFUSED_NANOS_MAX: u64 = 1_000_000_000;
/// Errands on the whole store that a host does for one guest at a time, each in a thread. Further ones wait.
pub(crate) const GUEST_ERRANDS_AT_ONCE: usize = 8;
/// A host that hasn't answered a question that needs no work for so long is called silent.
pub(crate) const HOST_SILENT_NANOS: u64 = 1_000_000_000;
/// When a guest that steps by hand may do so next: the host does the work.
pub(crate) const GUEST_STEP_WAIT: Duration = Duration::from_secs(3600);
/// Hosts that die after one request was sent to them: one that ends each of them must not end all.
pub(crate) const HOSTS_A_REQUEST: u32 = 2;
/// After so many hosts that died soon, one after the other, a guest hosts no more.
pub(crate) const HOSTS_SEEN_DIE: u32 = 3;
/// A host that dies sooner dies soon.
pub(crate) const HOST_LIFE_LEAST_NANOS: u64 = 1_000_000_000;
/// How long a host that goes waits for what was begun.
pub(crate) const HOST_ANSWERS_NANOS: u64 = 100_000_000;
/// How often a host looks whether sessions without a connection live.
pub(crate) const HOST_TICK_NANOS: u64 = 5_000_000;
pub(crate) const HOST_TICK: Duration = Duration::from_nanos(HOST_TICK_NANOS);
/// How long a frame may take to arrive, from its first byte on.
pub(crate) const FRAME_NANOS_MAX: u64 = 10_000_000_000;
/// How long nobody is accepted once descriptors are scarce.
pub(crate) const ACCEPT_RESTS_NANOS: u64 = 20_000_000;
/// How often an opening for one process alone asks whether sessions still live.
pub(crate) const SESSION_END_TRIES: u32 = 10;
