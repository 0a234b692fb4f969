//! The real agent, as a process on this machine, driven over unix sockets by the real client.
//! What needs a guest (init, vsock, power, hardware) is tested in one, by the end-to-end tests.

#![allow(clippy::unwrap_used)] // A test helper that fails is a test that fails.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use varve_agent::client::{Client, Error};
use varve_agent::pattern;
use varve_agent::protocol::*;

struct Agent {
    process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}", folder.path().join("agent").display());
        let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
        let mut process = Command::new(env!("CARGO_BIN_EXE_varve-agent"))
            .args(["--listen", &socket, "--functions"])
            .arg(functions)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 19];
        process.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"varve-agent: ready ");
        Self { process, folder }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("agent{suffix}"))
    }

    fn control(&self) -> Client<UnixStream> {
        Client::new(UnixStream::connect(self.path("")).unwrap())
    }

    fn stream(&self, header: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path(".stream")).unwrap();
        writeln!(stream, "{header}").unwrap();
        stream
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..Exec::default() }
}

fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result.unwrap_err() {
        Error::Agent(text) => text,
        other => panic!("the agent did not answer: {other}"),
    }
}

#[test]
fn ping_and_info_tell_of_this_machine() {
    let agent = Agent::start();
    let mut client = agent.control();
    let first: Ping = client.call(&Request::Ping).unwrap();
    let second: Ping = client.call(&Request::Ping).unwrap();
    assert!(second.monotonic_ns > first.monotonic_ns);
    let info: Info = client.call(&Request::Info).unwrap();
    assert_eq!(info.cpus, std::thread::available_parallelism().unwrap().get());
    assert!(info.net.iter().any(|interface| interface.name == "lo"));
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    assert!(total.contains(&info.memory_kib.to_string()));
}

#[test]
fn exec_returns_what_the_command_did() {
    let agent = Agent::start();
    let mut client = agent.control();
    let mut run = |request: Exec| client.call::<ExecReply>(&Request::Exec(request)).unwrap();
    let reply = run(exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]));
    assert_eq!(
        (reply.code, reply.stdout.as_str(), reply.stderr.as_str()),
        (Some(3), "out\n", "err\n")
    );

    let text = "0123456789\n".repeat(50_000);
    let reply = run(Exec { stdin: text.clone(), ..exec(&["cat"]) });
    assert_eq!((reply.stdout == text, reply.truncated, reply.code), (true, false, Some(0)));

    // A command that does not read its input is not waited for in vain.
    assert_eq!(run(Exec { stdin: text, ..exec(&["true"]) }).code, Some(0));

    let reply = run(exec(&["sh", "-c", "head -c 5000000 /dev/zero"]));
    assert_eq!((reply.stdout.len(), reply.truncated), (2 << 20, true));

    let reply = run(exec(&["sh", "-c", "kill -9 $$"]));
    assert_eq!((reply.code, reply.signal, reply.timed_out), (None, Some(9), false));
}

#[test]
fn exec_ends_in_time_with_all_children() {
    let agent = Agent::start();
    let start = Instant::now();
    let request =
        Exec { timeout_s: Some(0.3), ..exec(&["sh", "-c", "echo begun; sleep 77.3; echo never"]) };
    let reply: ExecReply = agent.control().call(&Request::Exec(request)).unwrap();
    assert_eq!((reply.timed_out, reply.signal, reply.stdout.as_str()), (true, Some(9), "begun\n"));
    // A child that lives on in the background keeps nobody waiting.
    let reply: ExecReply =
        agent.control().call(&Request::Exec(exec(&["sh", "-c", "sleep 2 & echo x"]))).unwrap();
    assert_eq!(reply.stdout, "x\n");
    assert!(start.elapsed().as_secs_f64() < 1.9);
    let processes = Command::new("ps").args(["-eo", "args"]).output().unwrap().stdout;
    assert!(!String::from_utf8_lossy(&processes).lines().any(|line| line == "sleep 77.3"));
}

#[test]
fn bad_requests_get_an_answer_and_the_connection_lives_on() {
    let agent = Agent::start();
    let mut stream = UnixStream::connect(agent.path("")).unwrap();
    for (line, part) in [
        ("", "malformed"),
        ("{", "malformed"),
        (r#"{"op":"dance"}"#, "dance"),
        (r#"{"op":"exec","argv":[]}"#, "argv is empty"),
        (r#"{"op":"exec","argv":["/nonexistent"]}"#, "/nonexistent"),
        (r#"{"op":"exec","argv":["true"],"timeout_s":-1}"#, "timeout_s"),
        (r#"{"op":"invoke","function":"../x","seed":1}"#, "../x"),
        (r#"{"op":"invoke","function":"nothing","seed":1}"#, "unknown function 'nothing'"),
        (r#"{"op":"invoke","function":"mmap","seed":1,"args":{"size_mib":0}}"#, "from 1 to"),
        (
            r#"{"op":"block","device":"null","direction":"read","offset":1,"bytes":512}"#,
            "multiples of 512",
        ),
        (r#"{"op":"memory","name":"a","action":"verify"}"#, "allocate it first"),
        (
            r#"{"op":"memory","name":"a","action":"allocate","mib":999999999}"#,
            "what the guest has free",
        ),
        (r#"{"op":"memory","name":"a","action":"allocate"}"#, "needs mib"),
        (r#"{"op":"memory","name":"a","action":"allocate","mib":1,"threads":0}"#, "threads"),
        (r#"{"op":"rng","bytes":65537}"#, "at most"),
        (r#"{"op":"connect","port":9,"bytes":1}"#, "port 9"),
    ] {
        writeln!(stream, "{line}").unwrap();
        let mut client = Client::new(&stream);
        let text = message(client.answer::<Done>());
        assert!(text.contains(part), "{line}: {text}");
    }
    let _: Ping = Client::new(&stream).call(&Request::Ping).unwrap();
}

#[test]
fn an_endless_line_is_cut_off() {
    let agent = Agent::start();
    let mut stream = UnixStream::connect(agent.path("")).unwrap();
    // The agent stops reading at its limit, so the end of this may find no reader.
    let _ = stream.write_all(&vec![b' '; (16 << 20) + 2]);
    assert!(message(Client::new(stream).answer::<Done>()).contains("longer than"));
}

#[test]
fn functions_are_kept_warm_and_repeat_themselves() {
    let agent = Agent::start();
    let mut client = agent.control();
    let mut invoke = |function: &str, seed| {
        let request = Invoke { function: function.into(), seed, ..Invoke::default() };
        client.call::<InvokeReply>(&Request::Invoke(request)).unwrap()
    };
    let cold = invoke("hello", 1);
    // sha256 of "hello, 1".
    assert_eq!(cold.checksum, "25a24bda5fb936b6fe59c7b0ed9961e111405c63866d24306cdf02f9f36f3d15");
    assert!(cold.start_micros.is_some());
    assert_eq!(cold.facts["greeting"], "hello, 1");
    let warm = invoke("hello", 2);
    assert!(warm.start_micros.is_none());
    assert_ne!(warm.checksum, cold.checksum);
    assert_eq!(invoke("hello", 1).checksum, cold.checksum);
    assert_ne!(invoke("wordcount", 1).checksum, cold.checksum);
}

#[test]
fn a_function_that_takes_too_long_is_killed_and_starts_anew() {
    let agent = Agent::start();
    let mut client = agent.control();
    let mut request =
        Invoke { function: "wordcount".into(), seed: 1, timeout_s: Some(0.0), ..Invoke::default() };
    let text = message(client.call::<InvokeReply>(&Request::Invoke(request.clone())));
    assert!(text.contains("its time was up"), "{text}");
    request.timeout_s = None;
    let reply: InvokeReply = client.call(&Request::Invoke(request)).unwrap();
    assert!(reply.start_micros.is_some());
}

#[test]
fn many_connections_are_served_at_once() {
    let agent = Agent::start();
    std::thread::scope(|scope| {
        // A slow one first: nobody waits for it.
        let mut slow = agent.control();
        let slow =
            scope.spawn(move || slow.call::<ExecReply>(&Request::Exec(exec(&["sleep", "1"]))));
        let start = Instant::now();
        for seed in 0..16 {
            let mut client = agent.control();
            let request = Invoke { function: "hello".into(), seed, ..Invoke::default() };
            let reply: InvokeReply = client.call(&Request::Invoke(request)).unwrap();
            assert_eq!(reply.facts["greeting"], format!("hello, {seed}"));
        }
        assert!(start.elapsed().as_secs_f64() < 0.9);
        assert_eq!(slow.join().unwrap().unwrap().code, Some(0));
    });
}

#[test]
fn streams_carry_data_unchanged() {
    const BYTES: usize = 3_000_001;
    let agent = Agent::start();
    let mut data = vec![0; BYTES];
    pattern::fill(5, 0, &mut data);

    let mut source = agent.stream(&format!(r#"{{"op":"source","bytes":{BYTES},"seed":5}}"#));
    let mut received = Vec::new();
    source.read_to_end(&mut received).unwrap();
    assert!(received == data);

    let mut sink = agent.stream(&format!(r#"{{"op":"sink","bytes":{BYTES}}}"#));
    sink.write_all(&data).unwrap();
    let reply: Transfer = Client::new(sink).answer().unwrap();
    assert_eq!((reply.bytes, reply.crc32), (BYTES as u64, pattern::crc32(5, BYTES as u64)));

    for header in [r#"{"op":"echo"}"#.to_owned(), format!(r#"{{"op":"echo","bytes":{BYTES}}}"#)] {
        let mut echo = agent.stream(&header);
        let mut reader = echo.try_clone().unwrap();
        let writer = std::thread::spawn({
            let data = data.clone();
            move || {
                echo.write_all(&data).unwrap();
                echo.shutdown(Shutdown::Write).unwrap();
            }
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == data);
    }
}

#[test]
fn bad_streams_are_told_so() {
    let agent = Agent::start();
    let error = |header: &str| message(Client::new(agent.stream(header)).answer::<Done>());
    assert!(error(r#"{"op":"swim"}"#).contains("swim"));
    assert!(error(r#"{"op":"sink"}"#).contains("bytes"));
    assert!(error(r#"{"op":"sink","bytes":1,"speed":1}"#).contains("speed"));
    let short = agent.stream(r#"{"op":"sink","bytes":10}"#);
    short.shutdown(Shutdown::Write).unwrap();
    assert!(message(Client::new(short).answer::<Done>()).contains("10 bytes early"));
}

#[test]
fn the_guest_can_call_the_host() {
    let agent = Agent::start();
    let host = UnixListener::bind(agent.path("_7000")).unwrap();
    let echo = std::thread::spawn(move || {
        let (stream, _) = host.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream).unwrap()
    });
    let bytes = 2_000_003;
    let request = Connect { port: 7000, bytes, seed: 3 };
    let reply: ConnectReply = agent.control().call(&Request::Connect(request)).unwrap();
    assert_eq!(reply.sent_crc32, pattern::crc32(3, bytes));
    assert_eq!(reply.received_crc32, reply.sent_crc32);
    assert_eq!(echo.join().unwrap(), bytes);
}

#[test]
fn memory_lives_from_request_to_request() {
    let agent = Agent::start();
    let operate = |action, seed, threads| {
        let request = Memory { name: "a".into(), action, mib: Some(8), seed, threads };
        agent.control().call::<MemoryReply>(&Request::Memory(request))
    };
    assert_eq!(operate(Action::Allocate, 0, None).unwrap().mib, 8);
    assert!(message(operate(Action::Allocate, 0, None)).contains("already"));
    operate(Action::Verify, 0, None).unwrap();
    operate(Action::Fill, 1, Some(4)).unwrap();
    operate(Action::Verify, 0, Some(3)).unwrap();
    operate(Action::Rewrite, 2, Some(2)).unwrap();
    operate(Action::Verify, 0, None).unwrap();
    operate(Action::Free, 0, None).unwrap();
    assert!(message(operate(Action::Free, 0, None)).contains("no region"));
}

#[test]
fn bad_options_are_named() {
    for (words, part) in [
        (&["--listen", "tcp:1"][..], "tcp:1"),
        (&["--listen"], "--listen needs a value"),
        (&["--boot-timer", "12"], "12"),
        (&["--loud"], "--loud"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_varve-agent")).args(words).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(part), "{words:?}");
    }
}
