//! Chat templates against Python's jinja2, and their bounds.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::{Value, json};
use tandem_loader::Gguf;
use tandem_models::template::{ChatTemplate, RenderContext, TemplateError};

/// A context with two messages and some extra variables.
fn context() -> RenderContext {
    let mut context = RenderContext::new(json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "z": 1, "a": {"items": [1.0, true]}},
    ]));
    context.bos_token = Some("<s>".into());
    context.now = Some("2026-01-02T12:34:56".parse().unwrap());
    context.extra.insert("text".into(), json!("Hello World"));
    context
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::new(source)?.render(&context())
}

#[test]
fn templates_of_real_models_render_as_in_python() {
    let Some(dir) = tandem_tests::fixtures("templates") else { return };
    let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let what = format!("{name}, {}", case["conversation"]);
        let template = ChatTemplate::new(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap();
        let mut variables = case["context"].as_object().unwrap().clone();
        let text = |value: Value| value.as_str().map(str::to_string);
        let mut take = |key: &str| variables.shift_remove(key).unwrap_or_default();
        let mut context = RenderContext::new(take("messages"));
        context.tools = take("tools");
        context.documents = take("documents");
        context.add_generation_prompt = take("add_generation_prompt").as_bool().unwrap();
        context.bos_token = text(take("bos_token"));
        context.eos_token = text(take("eos_token"));
        context.extra = variables;
        context.now = Some(expected["now"].as_str().unwrap().parse().unwrap());
        let rendered = template.render(&context);
        match case["error"]["kind"].as_str() {
            None => assert_eq!(rendered.as_deref(), Ok(case["output"].as_str().unwrap()), "{what}"),
            Some("template_raise") => match rendered {
                Err(TemplateError::Raised { message, .. }) => assert_eq!(message, case["error"]["message"], "{what}"),
                other => panic!("{what}: {other:?}"),
            },
            Some(_) => assert!(rendered.is_err(), "{what}: Python fails, we gave {rendered:?}"),
        }
    }
    assert!(cases.len() > 100, "only {} cases", cases.len());
}

/// Expected texts are what Python's jinja2 3.1.6 gives.
#[test]
fn expressions_mean_what_they_mean_in_python() {
    for (source, expected) in [
        ("{{ [none, true, 1.0, 1e16, 'a', \"it's\"] }}", "[None, True, 1.0, 1e+16, 'a', \"it's\"]"),
        ("{{ text[3:0:-1] }}|{{ text[0:5:-1] }}|{{ text[-3:] }}|{{ text[99] }}", "lle||rld|"),
        ("{{ 'a' * 3 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 / 2 }}{{ 2 ** -1 }}", "aaa-423.50.5"),
        ("{{ '%s is %05.1f%%' % ('x', 2.55) }}", "x is 002.5%"),
        ("{{ '{:>5}|{a!r}'.format(1, a='b') }}", "    1|'b'"),
        ("{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 'el' in text }}{{ 1 == true }}{{ (1,) == [1] }}", "TrueFalseTrueTrueFalse"),
        (
            "{{ nope }}|{{ nope is defined }}|{{ none|default('x') }}|{{ 'a' if false }}|{{ 'a' ~ nope ~ none }}",
            "|False|None||aNone",
        ),
        ("{{ text.split('o', 1) }}{{ ' a  b '.split() }}{{ 'xay'.strip('xy') }}", "['Hell', ' World']['a', 'b']a"),
        ("{{ text.startswith(('x', 'H')) }}{{ text.find('o') }}{{ text.title() }}", "True4Hello World"),
        ("{{ messages[1] }}", "{'role': 'assistant', 'content': None, 'z': 1, 'a': {'items': [1.0, True]}}"),
        ("{{ messages[1]|tojson }}", r#"{"role": "assistant", "content": null, "z": 1, "a": {"items": [1.0, true]}}"#),
        (
            "{{ {'b': 'é', 'a': []}|tojson(indent=1, sort_keys=true, ensure_ascii=true) }}",
            "{\n \"a\": [],\n \"b\": \"\\u00e9\"\n}",
        ),
        ("{{ messages[1].a['items'][0] }}{{ messages[1].a.items()|list }}", "1.0[('items', [1.0, True])]"),
        // A dict without such a key answers with its method, which is true.
        ("{{ 'T' if messages[0]['items'] }}{{ 'T' if messages[0].items }}", "TT"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join }}", "Hi"),
        ("{{ 'T' if messages|selectattr('role', 'equalto', 'none') }}", "T"),
        ("{{ ['b', 'A', 'a']|sort }}{{ {'b': 1, 'A': 2}|dictsort }}", "['A', 'a', 'b'][('A', 2), ('b', 1)]"),
        (
            "{{ text is string }}{{ text is sequence }}{{ messages is mapping }}{{ true is number }}",
            "TrueTrueFalseTrue",
        ),
        ("{{ strftime_now('%d %b %Y') }}", "02 Jan 2026"),
        ("{{ 'a\\nb'|indent(2) }}{{ ' x '|trim }}{{ '3.7'|int }}{{ 2.5|round }}", "a\n  bx32.0"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn statements_and_whitespace_are_those_of_jinja2() {
    for (source, expected) in [
        ("  {% if true %}\n a\n  {% endif %}\n b\n", " a\n b"),
        (
            "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro m(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "[12][13]"),
        (
            "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ ',' if not loop.last }}{% endfor %}",
            "1user,2assistant",
        ),
        ("{% generation %}{{ text }}{% endgeneration %}!", "Hello World!"),
        ("{% raw %}\n{{ x }}{% endraw %}{# gone #}", "\n{{ x }}"),
        ("a\r\nb\r\n", "a\nb"),
        ("{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{% set c | upper %}x{% endset %}{{ c }}", "1(2, 3)X"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn errors_name_the_line_and_the_cause() {
    assert_eq!(render("{{ 6 is divisibleby 3 }} {{ 7 is divisibleby(3) }}").unwrap(), "True False");
    let error = |source: &str| render(source).unwrap_err();
    assert_eq!(
        error("\n\n{{ raise_exception('no ' ~ text) }}"),
        TemplateError::Raised { line: 3, message: "no Hello World".into() }
    );
    assert_eq!(error("a\n{{ nope.x }}").to_string(), "chat template, line 2: `nope` is undefined");
    assert_eq!(
        error("{{ 'a' + none }}").to_string(),
        "chat template, line 1: can only concatenate str (not \"NoneType\") to str"
    );
    assert!(matches!(error("\n{{ (1 }}"), TemplateError::Syntax { line: 2, .. }));
    assert!(matches!(error("{% if true %}"), TemplateError::Syntax { .. }));
    assert!(matches!(error("{{ 1 +\n\n nope }}"), TemplateError::Render { .. }));
    for refused in [
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% include 'x' %}",
        "{% for x in none %}{% endfor %}",
    ] {
        assert!(matches!(error(refused), TemplateError::Render { .. }), "{refused}");
    }
}

#[test]
fn no_template_runs_or_grows_without_bound() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 99999999999 }}",
        "{{ 'a'.center(99999999999) }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ range(99999)|unique|list }}",
    ] {
        assert!(matches!(render(source), Err(TemplateError::Limit { .. })), "{source}");
    }
    // What only reads a text takes as long as it is, and is paid for too.
    for reads in [
        "'b' in x",
        "x|length",
        "x[9999999]",
        "x == y",
        "x in [y]",
        "x < y",
        "x|int",
        "x|float",
        "x is upper",
        "x|wordcount",
        "{x: 1}",
        "x.isupper()",
        "x|upper",
    ] {
        let set = "{% set x = 'a' * 10000000 %}{% set y = 'a' * 5000000 + 'a' * 5000000 %}";
        let source = format!("{set}{{% for i in range(99999) %}}{{% if {reads} %}}{{% endif %}}{{% endfor %}}");
        assert!(matches!(render(&source), Err(TemplateError::Limit { .. })), "{reads}");
    }
    for source in [
        "{{ 5 is divisibleby 0 }}",
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}",
        "{{ '%99999999d' % 1 }}",
        &format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        &format!("{{{{ 1{} }}}}", " + 1".repeat(5000)),
    ] {
        assert!(render(source).is_err(), "{:.60}", source);
    }
}

#[test]
fn fallback_writes_a_line_per_message() {
    let mut context = RenderContext::new(json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2+2?"}, {"type": "image"}]},
        {"role": "assistant", "content": null},
    ]));
    let template = ChatTemplate::fallback();
    assert_eq!(template.render(&context).unwrap(), "system: Be brief.\nuser: 2+2?\nassistant: \nassistant:");
    context.add_generation_prompt = false;
    assert_eq!(template.render(&context).unwrap(), "system: Be brief.\nuser: 2+2?\nassistant: \n");
}

#[test]
fn extra_variables_win_and_missing_tokens_are_undefined() {
    let template = ChatTemplate::new("{{ bos_token }}{{ eos_token is defined }}{{ tools is none }}{{ x.b }}").unwrap();
    let mut context = context();
    context.extra.insert("x".into(), json!({"b": [1]}));
    assert_eq!(template.render(&context).unwrap(), "<s>FalseTrue[1]");
    context.extra.insert("bos_token".into(), json!("B"));
    assert_eq!(template.render(&context).unwrap(), "BFalseTrue[1]");
}

/// A model file with string metadata and nothing else.
fn model_with(metadata: &[(&str, &str)]) -> Gguf {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    let put = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    for (key, value) in metadata {
        put(&mut bytes, key);
        bytes.extend(8u32.to_le_bytes()); // a string
        put(&mut bytes, value);
    }
    Gguf::from_bytes("model.gguf".as_ref(), bytes).unwrap()
}

#[test]
fn a_model_may_have_no_template_one_or_several() {
    let none = model_with(&[("general.architecture", "llama")]);
    assert!(ChatTemplate::from_metadata(none.metadata()).unwrap().is_none());

    let several = model_with(&[
        ("general.architecture", "llama"),
        ("tokenizer.chat_template", "plain"),
        ("tokenizer.chat_template.tool_use", "{{ messages|length }} with tools"),
    ]);
    let metadata = several.metadata();
    assert_eq!(ChatTemplate::names(metadata), ["default", "tool_use"]);
    let text = |template: ChatTemplate| template.render(&context()).unwrap();
    assert_eq!(text(ChatTemplate::from_metadata(metadata).unwrap().unwrap()), "plain");
    assert_eq!(text(ChatTemplate::from_metadata_named(metadata, "default").unwrap()), "plain");
    assert_eq!(text(ChatTemplate::from_metadata_named(metadata, "tool_use").unwrap()), "2 with tools");
    let missing = ChatTemplate::from_metadata_named(metadata, "rag").unwrap_err();
    assert_eq!(missing.to_string(), "the model has no chat template named 'rag'; it has: default, tool_use");
}
