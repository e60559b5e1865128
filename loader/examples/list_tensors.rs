//! Lists the tensors of a GGUF file: `cargo run -p tandem-loader --example list_tensors -- model.gguf`

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: list_tensors FILE.gguf")?;
    let gguf = tandem_loader::Gguf::open(&path)?;
    for tensor in gguf.tensors() {
        println!("{:<6} {:>12} bytes  {:?}  {}", tensor.ty, tensor.n_bytes(), tensor.dims(), tensor.name);
    }
    Ok(())
}
