//! `spindle serve`: a model over HTTP, until it is told to stop.

use crate::args::{self, ServeArgs};
use crate::attention::Attention;
use crate::measured;
use crate::output;
use crate::quantity::Share;
use crate::session::Plan;
use anyhow::{Context, Result, bail, ensure};
use server::{Ended, ServerConfig};
use sparse::Specs;
use std::net::ToSocketAddrs;
use std::time::Duration;
use tokio::net::TcpListener;

/// Runs it.
pub(crate) fn serve(args: &ServeArgs) -> Result<()> {
    let mut plan = Plan::resolve(&args.model)?;
    plan.max_queue = usize::from(args.max_queue);
    let config = config(args, &plan)?;
    let runtime = runtime()?;
    // The port is taken before the model is loaded: whoever has it already is known at once.
    let listener = runtime.block_on(bind(&args.host, args.port))?;
    let address = listener.local_addr()?;
    let (name, attention) = (config.names[0].clone(), describe(&config));
    let session = plan.start()?;
    let random = if session.opened.checkpoint.is_random() { ", random weights: answers mean nothing" } else { "" };
    let stop = async move {
        stop_signal().await;
        eprintln!("stopping: running streams may go on for {} s; once more stops at once", args.drain_seconds);
        tokio::spawn(async {
            stop_signal().await;
            std::process::exit(130);
        });
    };
    eprintln!(
        "server   {} lanes, {} may wait; {} tokens a prefill pass; decode share {}; prefix cache {}; {}; drain {} s",
        config.max_lanes,
        config.max_queue,
        args.model.prefill_tokens,
        args.model.decode_share.0,
        if args.model.no_prefix_cache { "off" } else { "on" },
        if config.api_keys.is_empty() { "no key asked for" } else { "a key is asked for" },
        args.drain_seconds
    );
    output::line(&format!("serving {name} at http://{address} ({attention}{random}); ctrl-c stops"))?;
    let ended = runtime.block_on(server::serve(listener, session.engine, session.opened, config, stop));
    // Threads that read a huge prompt would be waited for; nobody needs their result.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ended::Drained => {}
        Ended::Cut => eprintln!("{} s are over: what still ran was cut", args.drain_seconds),
        Ended::Failed(why) => bail!("the engine has stopped, and with it the server: {why}"),
    }
    Ok(())
}

/// Serves the plan's model with its defaults on a free port of this machine, for as long as `work` runs.
pub(crate) fn with_server<T>(plan: Plan, work: impl AsyncFnOnce(String) -> Result<T>) -> Result<T> {
    let config = config(&ServeArgs { api_key: Vec::new(), ..args::defaults() }, &plan)?;
    let runtime = runtime()?;
    let listener = runtime.block_on(bind("127.0.0.1", 0))?;
    let address = listener.local_addr()?.to_string();
    let session = plan.start()?;
    runtime.block_on(async {
        let (done, stopped) = tokio::sync::oneshot::channel::<()>();
        let stop = async { drop(stopped.await) };
        let serving = server::serve(listener, session.engine, session.opened, config, stop);
        let working = async {
            let outcome = work(address).await;
            drop(done);
            outcome
        };
        match tokio::join!(serving, working) {
            (server::Ended::Failed(why), outcome) => outcome.context(why),
            (_, outcome) => outcome,
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("no threads for the server")
}

fn config(args: &ServeArgs, plan: &Plan) -> Result<ServerConfig> {
    let default = Attention::of(&plan.specs, &args.attention)?;
    let dense = default.algorithm == Specs::DENSE;
    if let Some(warning) = measured::warning(&default) {
        eprintln!("warning: {warning}");
    }
    ensure!(
        args.attention.budget.is_none() || !dense,
        "--budget needs --attention with a sparse algorithm: dense reads all"
    );
    let mut attentions = Attention::resolve_all(&plan.specs, &names(&plan.specs), &[], &args.attention.selection)?;
    let default_attention = usize::from(default.algorithm.0);
    attentions[default_attention] = default;
    let model = plan.opened.config();
    let served: Vec<String> = match args.served_model_name.is_empty() {
        true => vec![model.name.clone()],
        false => args.served_model_name.clone(),
    };
    if let Some(empty) = served.iter().chain(&args.api_key).find(|text| text.trim().is_empty()) {
        bail!("--served-model-name and --api-key are not empty; one is '{empty}'");
    }
    Ok(ServerConfig {
        names: served,
        api_keys: args.api_key.clone(),
        max_model_len: plan.sizes.limits.max_tokens,
        attentions: attentions.into_iter().map(engine::Attention::from).collect(),
        default_attention,
        specs: plan.specs.clone(),
        max_queue: plan.max_queue,
        max_lanes: plan.sizes.limits.max_lanes,
        drain: Duration::from_secs(u64::from(args.drain_seconds)),
    })
}

fn names(specs: &Specs) -> Vec<String> {
    specs.names().into_iter().map(str::to_string).collect()
}

/// The default attention, for the line at the start.
fn describe(config: &ServerConfig) -> String {
    let spec = &config.specs.all()[config.default_attention];
    match spec.is_sparse() {
        true => format!("{} {}", spec.name, Share(config.attentions[config.default_attention].selection.budget)),
        false => spec.name.to_string(),
    }
}

async fn bind(host: &str, port: u16) -> Result<TcpListener> {
    let addresses = (host, port).to_socket_addrs().with_context(|| format!("--host {host} is no address"))?;
    let listener = TcpListener::bind(&addresses.collect::<Vec<_>>()[..]).await;
    listener.with_context(|| format!("{host}:{port} cannot be listened on; choose another --port, or 0 for a free one"))
}

/// SIGTERM, or ctrl-c.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
