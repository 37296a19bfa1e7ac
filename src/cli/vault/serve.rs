//! `wrapdisk vault serve`: the embedded vault over HTTPS, until a signal ends it.
//!
//! Must never see: keys, tokens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::context::Context;
use crate::cli::{mount, output};
use crate::error::{Error, IoContext, Result};
use crate::vault::server::{Cidr, Options, Server};

/// Serve this vault over HTTPS, with the REST API of Azure Key Vault
///
/// Clients are the Azure SDKs, az, or wrapdisk on another machine; they trust the vault's own CA (--ca-out). Who may do
/// what is decided by the vault's grants. Ends at SIGTERM, when what is being served has been answered.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault serve
  wrapdisk vault serve --ca-out ca.pem --token-listen 127.0.0.1:8444
  wrapdisk vault serve --listen 10.0.0.2:8443 --san vault.example.com --allow 10.0.0.0/8
  curl --cacert ca.pem https://127.0.0.1:8443/keys?api-version=7.6    the challenge: 401")]
pub(in crate::cli) struct Serve {
    /// Address and port, repeatable; port 0 is any [default: 127.0.0.1:8443 and [::1]:8443]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,

    /// Also give tokens to managed identities (App Service's endpoint, /msi/token), over plain http on loopback
    #[arg(long, value_name = "ADDR:PORT")]
    token_listen: Option<SocketAddr>,

    /// Also give IDENTITY's tokens, without any secret, to whoever reaches the token endpoint as he would IMDS
    #[arg(long, value_name = "IDENTITY", requires = "token_listen")]
    imds: Option<String>,

    /// Another name or address of this server, repeatable
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,

    /// Answer only clients from this network, repeatable [default: all]
    #[arg(long, value_name = "CIDR", value_parser = parse_cidr)]
    allow: Vec<Cidr>,

    /// Requests a second that each identity may make; 0: no limit. Unwraps by disks are counted apart
    #[arg(long, value_name = "N", default_value_t = 500)]
    rate_limit: u32,

    /// How long a token is valid: 5m to 24h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_token_lifetime)]
    token_lifetime: Duration,

    /// How long the server's certificate is valid; a new one is made when two thirds are over
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_certificate_lifetime)]
    certificate_lifetime: Duration,

    /// Write the CA's certificate to FILE, for clients to trust
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,

    /// Write the port to FILE when the server listens, and the token endpoint's to its second line
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    text.parse::<Cidr>().map_err(|e| e.to_string())
}

fn parse_token_lifetime(text: &str) -> Result<Duration, String> {
    parse_time(text, 300..=86_400, "5m to 24h")
}

fn parse_certificate_lifetime(text: &str) -> Result<Duration, String> {
    parse_time(text, 3..=365 * 86_400, "3s to 365d")
}

/// `90s`, `5m`, `24h`, `30d`.
fn parse_time(text: &str, within: std::ops::RangeInclusive<u64>, allowed: &str) -> Result<Duration, String> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => 0,
    };
    let digits = text.get(..text.len().saturating_sub(1)).filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    let number = digits.and_then(|t| t.parse::<u64>().ok());
    let seconds = number.and_then(|n| n.checked_mul(unit)).filter(|s| within.contains(s));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("allowed {allowed}"))
}

pub(super) fn run(context: &Context, args: &Serve) -> Result<()> {
    let vault = Arc::new(context.existing()?.vault);
    warn_about_networks(&args.listen);
    let server = bind(vault, args)?;
    // From here on a signal is a request to end in order.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).io_at("watch signals", "")?;
    let (handle, stopper) = (signals.handle(), server.stopper());
    let watch = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // The second signal ends it at once.
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            asked = true;
            stopper.stop();
        }
    });
    let watch = watch.io_at("start a thread", "")?;
    tell(&server, args)?;
    mount::notify_systemd()?;
    let served = server.run();
    handle.close();
    let _ = watch.join();
    served
}

const PORT: u16 = 8443;

fn bind(vault: Arc<crate::vault::local::LocalVault>, args: &Serve) -> Result<Server> {
    let options = |listen: Vec<SocketAddr>| Options {
        listen,
        token_listen: args.token_listen,
        imds: args.imds.clone(),
        names: args.san.clone(),
        allow: args.allow.clone(),
        rate: (args.rate_limit > 0).then_some(args.rate_limit),
        token_lifetime: args.token_lifetime,
        leaf_lifetime: args.certificate_lifetime,
    };
    if !args.listen.is_empty() {
        return Server::bind(vault, options(args.listen.clone()));
    }
    let v4: SocketAddr = (Ipv4Addr::LOCALHOST, PORT).into();
    let v6: SocketAddr = (Ipv6Addr::LOCALHOST, PORT).into();
    match std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => Server::bind(vault, options(vec![v4, v6])),
        // A machine without IPv6: nobody asked for it either.
        Err(_) => Server::bind(vault, options(vec![v4])),
    }
}

/// Where it listens, on standard output and in the files that were asked for.
fn tell(server: &Server, args: &Serve) -> Result<()> {
    let (https, tokens) = (server.addresses()?, server.token_address()?);
    if let Some(file) = &args.ca_out {
        write(file, server.ca_pem())?;
    }
    for address in &https {
        output::line(&format!("https://{address}"))?;
    }
    if let Some(address) = tokens {
        output::line(&format!("http://{address}/msi/token"))?;
    }
    if let Some(file) = &args.port_file {
        let ports = https.first().into_iter().chain(&tokens).map(|a| format!("{}\n", a.port()));
        write(file, &ports.collect::<String>())?;
    }
    Ok(())
}

/// Whole or not at all: somebody waits for the file.
fn write(file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = tempfile::NamedTempFile::new_in(folder).io_at("write", file)?;
    std::fs::write(new.path(), text).io_at("write", file)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(new.path(), mode).io_at("write", file)?;
    new.persist(file).map(drop).map_err(|e| Error::io("write", e.error).at(file))
}

fn warn_about_networks(listen: &[SocketAddr]) {
    let public: Vec<_> =
        listen.iter().filter(|a| !IpAddr::is_loopback(&a.ip())).map(ToString::to_string).collect();
    if !public.is_empty() {
        output::note(&format!(
            "warning: {} can be reached from other machines; --allow says from which",
            public.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_a_limit() {
        for (text, seconds) in [("300s", 300), ("5m", 300), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(parse_token_lifetime(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "5", "m", "4m", "25h", "-5m", "5.0m", "99999999999999999999h", "5\u{e9}"] {
            assert!(parse_token_lifetime(bad).is_err(), "{bad:?}");
        }
    }
}
