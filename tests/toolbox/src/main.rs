//! The program in the project's container images: servers, load clients and processes that end in
//! known ways. One static binary without an async runtime, so that an image is a few hundred
//! kilobytes and a container starts at once.

mod args;
mod call;
mod http;
mod load;
mod report;
mod serve;
mod signals;
mod simple;
mod stream;
mod udp;

use std::process::ExitCode;

use args::{Args, UsageError};

const HELP: &str = "\
usage: toolbox COMMAND [--flag VALUE]...

  serve       answer HTTP and UDP on one port, echo TCP on the next, until SIGTERM
                --port 8080  --echo-port 8081  --name HOSTNAME
              paths: /  /hostname  /clientip  /echo?TEXT  /env[?NAME]  /delay?MS  /exit?CODE  /healthz
  call        request a URL, a fresh connection each time; prints counts per host as JSON
                --url http://ADDRESS[:PORT]/  --count 1  --concurrency 1  --rate PER_SECOND
                --duration SECONDS  --timeout 5  --name-header Tholepin-Host
  udp-call    send numbered datagrams to `serve`; prints counts per host as JSON
                --to ADDRESS:PORT  --count 1  --timeout 2  --same-socket
  tcp-stream  one long connection to the echo port with numbered lines; prints what came back
                --to ADDRESS:PORT  --seconds 10  --rate 10  --timeout 5
  load-serve  the other end of `load`: answers, counts, swallows, on several ports of each kind
                --address ::  --port 9000  --ports 5  --cpu N  --realtime
  load        measure; prints rates and latencies as JSON
                --mode connect|request|bulk|udp-request|udp-one-way  --to ADDRESS:PORT
                --ports 1  --control ADDRESS:PORT  --seconds 1  --size 64  --cpu N  --realtime
  lines       print numbered lines
                --count 10  --interval-ms 0  --stderr-every N
  fail        wait, print a message, exit
                --code 1  --after SECONDS  --message TEXT
  sleep       sleep [SECONDS] (for ever without), end at SIGTERM with code 0
                --ignore-term   stay until SIGKILL

exit codes: 0 success, 1 a call failed, 64 usage";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(command) = arguments.next() else {
        println!("{HELP}");
        return ExitCode::from(64);
    };
    let outcome = match command.as_str() {
        "serve" => Args::parse(arguments, &["port", "echo-port", "name"], &[]).and_then(serve::run),
        "call" => Args::parse(arguments, call::OPTIONS, &[]).and_then(call::run),
        "udp-call" => {
            Args::parse(arguments, &["to", "count", "timeout"], &["same-socket"]).and_then(udp::run)
        }
        "tcp-stream" => {
            Args::parse(arguments, &["to", "seconds", "rate", "timeout"], &[]).and_then(stream::run)
        }
        "load-serve" => {
            Args::parse(arguments, load::SERVE_OPTIONS, &["realtime"]).and_then(load::serve)
        }
        "load" => Args::parse(arguments, load::OPTIONS, &["realtime"]).and_then(load::run),
        "lines" => Args::parse(arguments, &["count", "interval-ms", "stderr-every"], &[])
            .and_then(simple::lines),
        "fail" => Args::parse(arguments, &["code", "after", "message"], &[]).and_then(simple::fail),
        "sleep" => Args::parse(arguments, &[], &["ignore-term"]).and_then(simple::sleep),
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(UsageError(format!("unknown command `{other}`"))),
    };
    outcome.unwrap_or_else(|UsageError(problem)| {
        eprintln!("toolbox: {problem}\n\n{HELP}");
        ExitCode::from(64)
    })
}
