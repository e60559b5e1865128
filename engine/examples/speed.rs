//! Prompt and generation speed of a model: `speed MODEL.gguf [n_prompt] [n_gen] [depth] [threads] [isa]`

use std::sync::Arc;
use std::time::Instant;

use tandem_engine::cpu::IsaLevel;
use tandem_engine::{LoadOptions, Model, Outputs, Session};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize, default: usize| args.get(i).and_then(|s| s.parse().ok()).unwrap_or(default);
    let (n_prompt, n_gen, depth, threads) = (arg(2, 512), arg(3, 128), arg(4, 0), arg(5, 2));
    let isa = args.get(6).and_then(|name| IsaLevel::ALL.into_iter().find(|l| l.name() == name));
    let start = Instant::now();
    let gguf = Arc::new(tandem_loader::Gguf::open(args[1].as_ref())?);
    let options = LoadOptions {
        threads: Some(threads),
        isa,
        n_ctx: Some(depth + n_prompt + n_gen + 16),
        ..LoadOptions::default()
    };
    let mut session = Session::new(Model::load(gguf, &options, &mut |_, _| ())?);
    println!("load {:.3} s; {:?}", start.elapsed().as_secs_f64(), session.model().backend_names());
    let token = |i: usize| (i * 7919 % 30000 + 1000) as u32;
    let mut best = (0.0f64, 0.0f64);
    for _ in 0..4 {
        session.truncate(0);
        let deep: Vec<u32> = (0..depth).map(token).collect();
        session.eval(&deep, Outputs::None)?;
        let prompt: Vec<u32> = (depth..depth + n_prompt).map(token).collect();
        let start = Instant::now();
        session.eval(&prompt, Outputs::Last)?;
        let pp = n_prompt as f64 / start.elapsed().as_secs_f64();
        session.truncate(depth);
        let start = Instant::now();
        for i in 0..n_gen {
            session.eval(&[token(i)], Outputs::Last)?;
        }
        let tg = n_gen as f64 / start.elapsed().as_secs_f64();
        println!("pp{n_prompt} {pp:.1} t/s   tg{n_gen} {tg:.1} t/s");
        best = (best.0.max(pp), best.1.max(tg));
    }
    println!("best: pp {:.1}  tg {:.1}; {:?}", best.0, best.1, session.model().memory());
    Ok(())
}
