//! Placements and the rules they come from.

use proptest::prelude::*;
use tandem_models::{Block, BlockKind, Hparams, Program, Registers};

use super::*;

/// A program of empty blocks.
fn program(n_layer: usize) -> Program {
    let halves = (0..n_layer).flat_map(|l| [BlockKind::Attention(l), BlockKind::FeedForward(l)]);
    let kinds = [BlockKind::Embed].into_iter().chain(halves).chain([BlockKind::Head]);
    Program {
        arch: String::new(),
        hparams: Hparams {
            n_layer,
            n_embd: 32,
            n_ff: vec![32; n_layer],
            n_expert: 0,
            n_expert_used: 0,
            n_ff_expert: None,
            n_head: 1,
            n_head_kv: 1,
            head_dim: 32,
            n_vocab: 32,
            n_ctx_train: 64,
            rms_eps: 1e-5,
        },
        registers: Registers { n_embd: 32, n_q: 32, n_kv: 32, n_ff: 32, n_expert: 0 },
        weights: vec![],
        ropes: vec![],
        blocks: kinds.map(|kind| Block { kind, steps: vec![], weights: vec![] }).collect(),
        unused: vec![],
    }
}

/// `C` and `G` of every block.
fn letters(placement: &Placement) -> String {
    placement.devices().iter().map(|device| &device.name()[..1]).collect()
}

fn placed(n_layer: usize, rules: &str) -> String {
    let program = program(n_layer);
    let mut devices = Placement::cpu(&program).devices();
    rules.parse::<Rules>().unwrap().apply(&program, &mut devices).unwrap();
    letters(&Placement::from_devices(&devices))
}

#[test]
fn the_last_layers_go_to_the_gpu() {
    let program = program(3);
    for (n, expected) in
        [(0, "CCCCCCCC"), (1, "CCCCCGGC"), (2, "CCCGGGGC"), (3, "CGGGGGGC"), (4, "CGGGGGGG"), (99, "CGGGGGGG")]
    {
        assert_eq!(letters(&Placement::last_layers(&program, n)), expected, "{n}");
    }
}

#[test]
fn rules_are_taken_in_order() {
    assert_eq!(placed(3, "attn=gpu"), "CGCGCGCC");
    assert_eq!(placed(3, "layers = gpu , ffn.0-1=cpu,output=gpu"), "CGCGCGGG");
    assert_eq!(placed(3, "layers.1=gpu, layers.1=cpu, embed=GPU"), "GCCCCCCC");
    assert_eq!(placed(3, "experts=gpu"), "CCCCCCCC");
}

#[test]
fn a_layer_that_is_not_there_is_an_error() {
    let program = program(3);
    let mut devices = Placement::cpu(&program).devices();
    let rules: Rules = "attn=gpu, ffn.1-3=gpu".parse().unwrap();
    let error = rules.apply(&program, &mut devices).unwrap_err();
    assert_eq!(error, "`ffn.1-3=gpu`: the model has 3 layers, 0 to 2");
}

#[test]
fn rules_about_nothing_are_known() {
    let rules: Rules = "experts=cpu, attn.1=gpu".parse().unwrap();
    assert_eq!(rules.idle(&program(2)).cloned().collect::<Vec<_>>(), [Rule::cpu_moe()]);
}

#[test]
fn errors_say_where() {
    for (text, expected) in [
        ("", "at character 1: expected a part (attn, ffn, experts, layers, embed, output)"),
        ("atn=gpu", "at character 1: expected a part (attn, ffn, experts, layers, embed, output), not `atn`"),
        ("attn=gpu,", "at character 10: expected a part (attn, ffn, experts, layers, embed, output)"),
        ("attn=gpu ffn=cpu", "at character 10: expected `,` or the end, found `f`"),
        ("attn = tpu", "at character 8: expected a device (cpu or gpu), not `tpu`"),
        ("attn", "at character 5: expected `=` and a device, as in `attn=gpu`, found the end"),
        ("ffn.x=cpu", "at character 5: expected a layer, as in `ffn.3` or `ffn.0-11`, not `x`"),
        ("ffn.=cpu", "at character 5: expected a layer, as in `ffn.3` or `ffn.0-11`"),
        ("ffn.5-2=cpu", "at character 5: layers 5-2 run backwards"),
        ("ffn.3-=cpu", "at character 7: expected a layer, as in `ffn.3` or `ffn.0-11`"),
        (
            "output.1=gpu",
            "at character 7: there is only one `output`, it takes no layers: write `output=cpu` or `output=gpu`",
        ),
        ("é=gpu", "at character 1: expected a part (attn, ffn, experts, layers, embed, output), not `é`"),
        (
            "ffn.99999999999999999999999=cpu",
            "at character 5: expected a layer, as in `ffn.3` or `ffn.0-11`, not `99999999999999999999999`",
        ),
    ] {
        assert_eq!(text.parse::<Rules>().unwrap_err().to_string(), expected, "{text:?}");
    }
}

#[test]
fn descriptions() {
    let program = program(4);
    let describe = |devices: &str| {
        let device = |c| if c == 'C' { Device::Cpu } else { Device::Gpu };
        Placement::from_devices(&devices.chars().map(device).collect::<Vec<_>>()).describe(&program)
    };
    assert_eq!(describe("CCCCCCCCCC"), "4 layers and output on CPU");
    assert_eq!(describe("CCCCCGGGGG"), "embed, layers.0-1 on CPU; layers.2-3, output on GPU");
    assert_eq!(describe("CGCGCGGGGG"), "embed, ffn.0-1 on CPU; layers.2-3, attn.0-1, output on GPU");
    assert_eq!(describe("GGGGGCCGGG"), "layers.2 on CPU; embed, layers.0-1, layers.3, output on GPU");
}

fn device() -> impl Strategy<Value = Device> {
    prop::sample::select(Device::ALL.to_vec())
}

fn rule(n_layer: usize) -> impl Strategy<Value = Rule> {
    let layers = (0..n_layer, 0..n_layer).prop_map(|(a, b)| a.min(b)..=a.max(b));
    let parts = prop::sample::select(Part::ALL.to_vec());
    (parts, prop::option::of(layers), device()).prop_map(|(part, layers, device)| {
        let layers = layers.filter(|_| !matches!(part, Part::Embed | Part::Output));
        Rule { part, layers, device }
    })
}

proptest! {
    /// What rules print is what they were read from.
    #[test]
    fn rules_survive_writing(rules in prop::collection::vec(rule(40), 1..8)) {
        let rules = Rules(rules);
        prop_assert_eq!(rules.to_string().parse::<Rules>(), Ok(rules));
    }

    /// Any text is rules or an error inside the text (or right behind it).
    #[test]
    fn any_text_is_answered(text in r"(attn|ffn|layers|output|gpu|cpu|[.=, \-0-9é]){0,12}") {
        match text.parse::<Rules>() {
            Ok(rules) => prop_assert_eq!(rules.to_string().parse::<Rules>(), Ok(rules)),
            Err(error) => prop_assert!(error.at <= text.chars().count()),
        }
    }

    /// Runs cover every block once, in order, and neighbours differ.
    #[test]
    fn runs_cover_every_block_once(devices in prop::collection::vec(device(), 1..40)) {
        let placement = Placement::from_devices(&devices);
        prop_assert_eq!(placement.devices(), devices);
        let mut next = 0;
        for (i, (device, blocks)) in placement.runs.iter().enumerate() {
            prop_assert!(blocks.start == next && !blocks.is_empty());
            prop_assert!(i == 0 || placement.runs[i - 1].0 != *device);
            next = blocks.end;
        }
    }

    /// The parts named for a device, read back as rules, give the placement again.
    #[test]
    fn the_parts_of_a_device_are_rules(devices in prop::collection::vec(device(), 10)) {
        let program = program(4);
        let parts = Placement::from_devices(&devices).parts_on(&program, Device::Gpu);
        let rules: Rules = match parts.as_str() {
            "" => Rules::default(),
            parts => format!("{}=gpu", parts.replace(", ", "=gpu,")).parse().unwrap(),
        };
        let mut again = Placement::cpu(&program).devices();
        rules.apply(&program, &mut again).unwrap();
        prop_assert_eq!(again, devices);
    }

    /// The last rule about a block decides, whatever came before.
    #[test]
    fn later_rules_win(rules in prop::collection::vec(rule(4), 0..6), last in rule(4)) {
        let program = program(4);
        let apply = |rules: &[Rule]| {
            let mut devices = Placement::cpu(&program).devices();
            Rules(rules.to_vec()).apply(&program, &mut devices).unwrap();
            devices
        };
        let before = apply(&rules);
        let after = apply(&[&rules[..], std::slice::from_ref(&last)].concat());
        for ((block, before), after) in program.blocks.iter().zip(before).zip(after) {
            prop_assert_eq!(after, if last.applies_to(block) { last.device } else { before });
        }
    }
}
