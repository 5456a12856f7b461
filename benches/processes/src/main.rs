//! What does a shared store cost its processes, and what does SQLite cost as many? One table of ratios.
//!
//! `cargo run --release --manifest-path benches/processes/Cargo.toml [-- --rounds 5 --millis 1000]`, in a directory of the disk that
//! is to be measured. The cases of a row run in turn in each round, and a ratio is the median of those of the rounds.
//!
//! A pair claims a new 36-byte key and completes it with 256 bytes, both at `Sync`. With SQLite a pair is an `INSERT OR IGNORE` and an
//! `UPDATE`, each its own transaction, in WAL mode with `synchronous = FULL`; it has its better setting in each round: the busy
//! timeout that it ships, or a busy handler that tries again every 50 µs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use onlyonce::{Claim, ClaimGuard, Store};
use rusqlite::Connection;

const RESULT: [u8; 256] = [7; 256];
const MINUTE: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "child") {
        return child(&args[1..]);
    }
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|arg| arg == name);
        at.map_or(default, |at| args[at + 1].parse().unwrap())
    };
    let (rounds, millis) = (number("--rounds", 5), number("--millis", 1000));
    println!(
        "{} processors, {rounds} rounds of {millis} ms",
        std::thread::available_parallelism().unwrap()
    );
    println!("| case | a second | of | a second | ratio |\n|---|---:|---|---:|---:|");
    rates(rounds, millis);
    println!("\n| case | median | least | greatest |\n|---|---:|---:|---:|");
    pings(rounds);
    replays(rounds, millis);
    openings(20 * rounds);
    handovers(4 * rounds);
}

/// Where a case runs, and by what.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One process has the store for itself.
    Own,
    /// The first process hosts.
    Shared,
    Sqlite,
    SqliteSpinning,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Own => "own",
            Kind::Shared => "shared",
            Kind::Sqlite => "sqlite",
            Kind::SqliteSpinning => "sqlite-spinning",
        }
    }

    fn of(name: &str) -> Kind {
        let all = [Kind::Own, Kind::Shared, Kind::Sqlite, Kind::SqliteSpinning];
        all.into_iter().find(|kind| kind.name() == name).unwrap()
    }
}

/// A process that opens the store, and does what it is told line by line.
struct Worker {
    process: Child,
    told: ChildStdin,
    tells: BufReader<ChildStdout>,
}

impl Worker {
    fn start(kind: Kind, dir: &Path) -> Worker {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", kind.name()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, tells) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut worker = Worker { process, told, tells: BufReader::new(tells) };
        worker.hear();
        worker
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.told, "{line}").unwrap();
    }

    fn hear(&mut self) -> Vec<f64> {
        let mut line = String::new();
        self.tells.read_line(&mut line).unwrap();
        assert!(line.starts_with("did"), "a worker has ended: {line:?}");
        line.split(' ').skip(1).map(|word| word.trim().parse().unwrap()).collect()
    }

    fn end(mut self) {
        drop(self.told);
        assert!(self.process.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn child(args: &[String]) {
    let (kind, dir) = (Kind::of(&args[0]), PathBuf::from(&args[1]));
    let seed = std::process::id();
    let store = match kind {
        Kind::Own => Some(Store::open_or_create(&dir).unwrap()),
        Kind::Shared => {
            Some(Store::builder().shared(true).open_timeout(MINUTE).open_or_create(&dir).unwrap())
        }
        Kind::Sqlite | Kind::SqliteSpinning => {
            drop(sqlite(&dir, kind));
            None
        }
    };
    println!("did");
    let mut round = 0_u64;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        round += 1;
        match words[0] {
            "pairs" => {
                let began = Instant::now();
                let (threads, time) = (number(1), Duration::from_millis(number(2)));
                let made = std::thread::scope(|scope| {
                    let running: Vec<_> = (0..threads)
                        .map(|thread| {
                            let key = move |n: u64| {
                                format!("{seed:08x}-{round:06x}-{thread:04x}-{n:015x}")
                            };
                            let (store, dir) = (&store, &dir);
                            scope.spawn(move || match store {
                                Some(store) => pairs(time, |n| pair(store, &key(n))),
                                None => {
                                    let connection = sqlite(dir, kind);
                                    pairs(time, |n| sqlite_pair(&connection, &key(n)))
                                }
                            })
                        })
                        .collect();
                    running.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
                });
                println!("did {made} {}", began.elapsed().as_secs_f64());
            }
            "ping" => println!("did"),
            "marks" => {
                let (store, until) =
                    (store.as_ref().unwrap(), Instant::now() + Duration::from_millis(number(2)));
                std::thread::scope(|scope| {
                    for thread in 0..number(1) {
                        scope.spawn(move || {
                            (0_u64..).take_while(|_| Instant::now() < until).for_each(|n| {
                                drop(store.mark((u64::from(seed), round, thread, n)).unwrap())
                            });
                        });
                    }
                });
                println!("did");
            }
            "replays" => {
                let (store, until) =
                    (store.as_ref().unwrap(), Instant::now() + Duration::from_millis(number(1)));
                let keys: Vec<_> = (0..100).map(|n| format!("replayed {n}")).collect();
                for key in &keys {
                    if let Claim::Acquired(claim) = store.claim(key).unwrap() {
                        claim.complete(&RESULT[..]).unwrap();
                    }
                }
                let mut times = Vec::new();
                for key in keys.iter().cycle() {
                    let began = Instant::now();
                    assert!(matches!(store.claim(key).unwrap(), Claim::Completed(_)));
                    times.push(micros(began.elapsed()));
                    if Instant::now() > until {
                        break;
                    }
                }
                println!("did {}", median(times));
            }
            // The longest time without an answer.
            "gap" => {
                let (store, until) =
                    (store.as_ref().unwrap(), Instant::now() + Duration::from_millis(number(1)));
                println!("did");
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                for n in 0_u64.. {
                    let _ = store.mark((u64::from(seed), round, n));
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    if last > until {
                        break;
                    }
                }
                println!("did {}", micros(longest));
            }
            other => panic!("{other}"),
        }
    }
}

fn pairs(time: Duration, mut pair: impl FnMut(u64)) -> u64 {
    let until = Instant::now() + time;
    let mut made = 0;
    while Instant::now() < until {
        pair(made);
        made += 1;
    }
    made
}

fn claimed(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

fn pair(store: &Store, key: &str) {
    claimed(store, key).complete(&RESULT[..]).unwrap();
}

fn sqlite(dir: &Path, kind: Kind) -> Connection {
    std::fs::create_dir_all(dir).unwrap();
    let connection = Connection::open(dir.join("keys.sqlite")).unwrap();
    match kind {
        Kind::SqliteSpinning => connection
            .busy_handler(Some(|_| {
                std::thread::sleep(Duration::from_micros(50));
                true
            }))
            .unwrap(),
        _ => connection.busy_timeout(MINUTE).unwrap(),
    }
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    let table = "CREATE TABLE IF NOT EXISTS keys (key BLOB PRIMARY KEY, result BLOB) WITHOUT ROWID";
    connection.execute(table, []).unwrap();
    connection
}

fn sqlite_pair(connection: &Connection, key: &str) {
    let mut claim =
        connection.prepare_cached("INSERT OR IGNORE INTO keys (key) VALUES (?1)").unwrap();
    assert_eq!(claim.execute([key]).unwrap(), 1);
    let mut complete =
        connection.prepare_cached("UPDATE keys SET result = ?2 WHERE key = ?1").unwrap();
    assert_eq!(complete.execute((key, &RESULT[..])).unwrap(), 1);
}

/// Pairs a second of so many processes with so many threads each.
fn rate(kind: Kind, processes: usize, threads: u64, millis: u64) -> f64 {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut workers: Vec<_> =
        (0..processes).map(|_| Worker::start(kind, &dir.path().join("keys"))).collect();
    let rate = rate_of(&mut workers, threads, millis);
    workers.into_iter().for_each(Worker::end);
    rate
}

/// Pairs a second of all of them together. The last may end late, since it waited for the others.
fn rate_of(workers: &mut [Worker], threads: u64, millis: u64) -> f64 {
    workers.iter_mut().for_each(|worker| worker.tell(&format!("pairs {threads} {millis}")));
    let done: Vec<_> = workers.iter_mut().map(Worker::hear).collect();
    let made: f64 = done.iter().map(|done| done[0]).sum();
    made / done.iter().map(|done| done[1]).fold(0.0, f64::max)
}

/// Pairs a second of one guest, while its host does nothing.
fn guest_rate(millis: u64) -> f64 {
    let dir = tempfile::tempdir_in(".").unwrap();
    let keys = dir.path().join("keys");
    let host = Worker::start(Kind::Shared, &keys);
    let mut guest = [Worker::start(Kind::Shared, &keys)];
    let rate = rate_of(&mut guest, 1, millis);
    guest.into_iter().for_each(Worker::end);
    host.end();
    rate
}

fn rates(rounds: u64, millis: u64) {
    let shared = |threads| rate(Kind::Shared, 4, threads, millis);
    let own = |threads| rate(Kind::Own, 1, threads, millis);
    let of_sqlite = |threads| {
        [Kind::Sqlite, Kind::SqliteSpinning]
            .map(|kind| rate(kind, 4, threads, millis))
            .into_iter()
            .fold(0.0, f64::max)
    };
    type Rate<'a> = &'a dyn Fn() -> f64;
    let rows: [(&str, Rate<'_>, &str, Rate<'_>); 5] = [
        ("one guest", &|| guest_rate(millis), "own calls of one thread", &|| own(1)),
        ("4 processes × 1", &|| shared(1), "own calls of 4 threads", &|| own(4)),
        ("4 × 16", &|| shared(16), "own calls of 64 threads", &|| own(64)),
        ("4 × 1", &|| shared(1), "SQLite, 4 × 1", &|| of_sqlite(1)),
        ("4 × 16", &|| shared(16), "SQLite, 4 × 16", &|| of_sqlite(16)),
    ];
    for (name, of, other, beside) in rows {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // Reversed every other round, so that drift of the machine favours none.
            let mut runs: [&mut dyn FnMut(); 2] =
                [&mut || first.push(of()), &mut || second.push(beside())];
            if round % 2 == 1 {
                runs.reverse();
            }
            runs.into_iter().for_each(|run| run());
        }
        let ratios = first.iter().zip(&second).map(|(first, second)| first / second).collect();
        println!(
            "| {name} | {:.0} | {other} | {:.0} | {:.2} |",
            median(first),
            median(second),
            median(ratios)
        );
    }
}

/// What the system takes to wake another process and to be woken by it: no call of a guest is faster, unless both are awake.
fn pings(rounds: u64) {
    let times = (0..rounds).map(|_| {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut other = Worker::start(Kind::Own, &dir.path().join("keys"));
        let ping = |_| {
            let began = Instant::now();
            other.tell("ping");
            other.hear();
            micros(began.elapsed())
        };
        let time = median((0..2000).map(ping).collect());
        other.end();
        time
    });
    show("a line to another process and back, µs (median of each round)", times.collect());
}

/// Times of a guest's replays, in microseconds.
fn replays(rounds: u64, millis: u64) {
    for (name, marking) in
        [("a guest's replay", 0), ("the same beside 48 threads of the host that mark", 48)]
    {
        let times = (0..rounds).map(|_| {
            let dir = tempfile::tempdir_in(".").unwrap();
            let keys = dir.path().join("keys");
            let (mut host, mut guest) =
                (Worker::start(Kind::Shared, &keys), Worker::start(Kind::Shared, &keys));
            host.tell(&format!("marks {marking} {}", millis + 500));
            guest.tell(&format!("replays {millis}"));
            let time = guest.hear()[0];
            host.hear();
            guest.end();
            host.end();
            time
        });
        show(&format!("{name}, µs (median of each round)"), times.collect());
    }
}

fn openings(times: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let keys = dir.path().join("keys");
    drop(Store::open_or_create(&keys).unwrap());
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    for _ in 0..times {
        for (is_shared, times) in [(false, &mut own), (true, &mut shared)] {
            let builder = Store::builder().shared(is_shared);
            let began = Instant::now();
            let store = builder.open(&keys).unwrap();
            times.push(micros(began.elapsed()));
            drop(store);
        }
    }
    show("opening alone, exclusive, µs", own);
    show("opening alone, shared, µs", shared);
}

/// How long a guest's calls wait when the host is killed, beside an opening after a crash.
fn handovers(times: u64) {
    let (mut gaps, mut openings) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let dir = tempfile::tempdir_in(".").unwrap();
        let keys = dir.path().join("keys");
        let (mut host, mut guest) =
            (Worker::start(Kind::Shared, &keys), Worker::start(Kind::Shared, &keys));
        host.tell("pairs 1 200");
        host.hear();
        guest.tell("gap 600");
        guest.hear();
        std::thread::sleep(Duration::from_millis(200));
        host.kill();
        gaps.push(guest.hear()[0] / 1000.0);
        guest.kill();
        let began = Instant::now();
        drop(Store::open(&keys).unwrap());
        openings.push(micros(began.elapsed()) / 1000.0);
    }
    show("a guest's longest wait when its host is killed, ms", gaps);
    show("opening and closing after a crash, ms", openings);
}

fn show(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!(
        "| {name} | {:.1} | {:.1} | {:.1} |",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
