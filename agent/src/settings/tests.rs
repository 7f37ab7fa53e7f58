use super::*;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(Path::new("agent.toml"), text)
}

/// `agentctl schema agent` is made of it.
#[test]
fn the_shipped_file_has_every_key() {
    let text = include_str!("../../../configs/agent.toml");
    let shipped: toml::Table = text.parse().unwrap();
    for (header, table) in [
        ("", &shipped),
        ("[dns]\n", shipped["dns"].as_table().unwrap()),
        ("[tracing]\n", shipped["tracing"].as_table().unwrap()),
    ] {
        let error = toml::from_str::<Settings>(&format!("{header}nobody_knows = 1"));
        let error = error.unwrap_err().message().to_owned();
        let keys: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 1, "{error}");
        for key in keys {
            assert!(table.contains_key(key), "configs/agent.toml lacks {header}{key}");
        }
    }
}

#[test]
fn a_misspelt_key_is_told_what_was_meant() {
    for (text, line, meant) in [
        ("log = 'info'\nlisten_prot = 1", 2, "`listen_port`"),
        ("[dns]\nupstrem = []", 2, "`upstream`"),
        ("log_format = 'jsn'", 1, "`json`"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(&format!("agent.toml:{line}")), "{error}");
        assert!(error.ends_with(&format!("; did you mean {meant}?")), "{error}");
    }
    let error = parse("nobody_knows = 1").unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(parse("").unwrap(), Settings::default());
}

#[test]
fn search_domains_are_the_meshs() {
    let searched = |list: &str| {
        let settings = parse(&format!("[dns]\nsearch = {list}\n"));
        settings.map(|it| (it.dns.search.len(), it.dns.short_names()))
    };
    assert_eq!(searched("[]").unwrap(), (0, false));
    assert_eq!(searched(r#"["prod.mesh.internal"]"#).unwrap(), (1, false));
    assert_eq!(searched(r#"["mesh.internal", "prod.mesh.internal"]"#).unwrap(), (2, true));
    for foreign in ["example.com", ".mesh.internal", "a.b.mesh.internal", "xmesh.internal"] {
        let error = searched(&format!("[{foreign:?}]")).unwrap_err().to_string();
        assert!(error.contains("is no domain of the mesh"), "{error}");
    }
}

#[test]
fn every_setting_can_be_set() {
    let settings = parse(
        r#"
            state_dir = "/s"
            socket = "/run/a.sock"
            device = "mesh0"
            guard = "optional"
            listen_port = 4500
            mtu = 1380
            lanes = 3
            proxy_port = 16001
            proxy_threads = 4
            drain_seconds = 30
            metrics = ""
            log = "debug"
            log_format = "json"
            access_log = "off"
            access_log_sample = 0.5
            endpoints = ["192.0.2.1:4500", "[2001:db8::1]:4500"]
            [dns]
            listen = false
            upstream = ["192.0.2.53:53"]
            configure = "resolv-conf"
            [tracing]
            otlp = "http://127.0.0.1:4318"
            sample = 0.01
            "#,
    )
    .unwrap();
    assert_eq!(settings.device, "mesh0");
    assert_eq!(settings.guard, GuardMode::Optional);
    assert_eq!((settings.lanes(), settings.proxy_threads()), (3, 4));
    assert_eq!(settings.drain_seconds, 30);
    assert_eq!(settings.endpoints.len(), 2);
    assert_eq!(settings.metrics_address(), None);
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!((settings.access_log, settings.tracing.sample), (AccessLog::Off, 0.01));
    assert_eq!(settings.access_log_sample, 0.5);
    assert_eq!(settings.dns.configure, ConfigureResolver::ResolvConf);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = parse("mtu = 1400\n\nlisten_prot = 1\n").unwrap_err().to_string();
    assert!(error.starts_with("agent.toml:3: "), "{error}");
    assert!(error.contains("listen_prot") && error.contains("listen_port"), "{error}");
    let error = parse("[dns]\nlisten = true\nserver = 1\n").unwrap_err().to_string();
    assert!(error.starts_with("agent.toml:3: ") && error.contains("server"), "{error}");
}

#[test]
fn values_that_cannot_work_are_refused() {
    for (text, key) in [
        ("mtu = 1200", "mtu"),
        ("mtu = 8921", "mtu"),
        ("mtu = 9000", "mtu"),
        ("lanes = 17", "lanes"),
        ("proxy_threads = 17", "proxy_threads"),
        ("drain_seconds = 3601", "drain_seconds"),
        ("listen_port = 0", "listen_port"),
        ("proxy_port = 0", "proxy_port"),
        ("metrics = \"localhost\"", "metrics"),
        ("log_format = \"xml\"", "log_format"),
        ("access_log = \"xml\"", "access_log"),
        ("guard = \"off\"", "guard"),
        ("access_log_sample = -0.1", "access_log_sample"),
        ("tracing.otlp = \"https://otel:4318\"", "tracing.otlp"),
        ("tracing.sample = 1.5", "tracing.sample"),
        ("tracing.sample = nan", "tracing.sample"),
        ("endpoints = [\"host:1\"]", "endpoints"),
        ("listen_port = \"many\"", "listen_port"),
        ("listen_port = 70000", "listen_port"),
        ("dns.listen = \"perhaps\"", "dns.listen"),
        ("dns.upstream = [\"192.0.2.53\"]", "dns.upstream"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("agent.toml:1: `{key}` ")), "{key}: {error}");
        let value = text.split_once("= ").unwrap().1.trim_matches(['[', ']', '"']);
        assert!(error.contains(value), "{key}: {error}");
    }
}

#[test]
fn the_overlay_takes_what_room_the_underlay_has() {
    let settings = Settings::default();
    for (underlay, overlay) in [
        (None, 1420),
        (Some(1500), 1420),
        (Some(1300), 1280),
        (Some(9000), 8920),
        (Some(65_536), 8920),
    ] {
        assert_eq!(settings.mtu(underlay), overlay, "{underlay:?}");
    }
    assert_eq!(parse("mtu = 1500").unwrap().mtu(Some(1500)), 1500, "by choice");
}

#[test]
fn only_the_default_file_may_be_missing() {
    let error = Settings::read(Path::new("/nonexistent/agent.toml")).unwrap_err();
    assert!(matches!(error, SettingsError::Read { .. }), "{error}");
}

#[test]
fn the_example_settings_are_the_defaults() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/agent.toml"));
    assert_eq!(Settings::read(path).unwrap(), Settings::default());
}

#[test]
fn an_endpoint_is_a_place_and_perhaps_a_path() {
    for (text, uri) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
        ("http://otel.example:80/otlp/v1/traces", "http://otel.example:80/otlp/v1/traces"),
    ] {
        assert_eq!(otlp_endpoint(text).unwrap().to_string(), uri);
    }
    for wrong in ["", "127.0.0.1:4318", "https://otel:4318", "http://", "grpc://a:1", "/v1/traces"]
    {
        assert!(otlp_endpoint(wrong).is_err(), "{wrong}");
    }
}
