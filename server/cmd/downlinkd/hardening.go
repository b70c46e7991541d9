package main

import (
	"errors"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/downlink-go/downlink/server"
)

// hardeningFlags are those that say who may reach the server, and how.
func hardeningFlags(f *pflag.FlagSet, config *server.Config) {
	f.StringVar(&config.TLSCert, "tls-cert", "", "file of the TLS certificate and its chain, in PEM, for HTTPS; changes are taken over")
	f.StringVar(&config.TLSKey, "tls-key", "", "file of the certificate's private key, in PEM")
	f.StringSliceVar(&config.CORSOrigins, "cors-origin", nil, "origin whose pages may use the server from a browser, such as https://maps.example.com, or * (repeatable)")
	f.StringSliceVar(&config.TrustedProxies, "trusted-proxies", nil, "addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host are believed, such as 10.0.0.0/8 (repeatable)")
	l, byDefault := &config.Limits, server.DefaultLimits()
	f.IntVar(&l.HeaderBytes, "max-header-bytes", byDefault.HeaderBytes, "largest header of a request, the URL included, in bytes")
	f.DurationVar(&l.HeaderTimeout, "header-timeout", byDefault.HeaderTimeout, "how long a client may take to send the header of a request")
	f.DurationVar(&l.IdleTimeout, "idle-timeout", byDefault.IdleTimeout, "close a connection that has no request for so long")
	for _, n := range []struct {
		value     *int
		name      string
		byDefault int
		usage     string
	}{
		{&l.Connections, "max-connections", byDefault.Connections, "open connections at a time; more have to wait"},
		{&l.Downloads, "max-downloads", byDefault.Downloads, "downloads at a time"},
		{&l.DownloadsPerKey, "max-downloads-per-key", byDefault.DownloadsPerKey, "downloads at a time of the URLs that one API key got"},
		{&l.RequestsPerMinute, "requests-per-minute", byDefault.RequestsPerMinute, "calls a minute with one API key"},
		{&l.FailuresPerMinute, "failures-per-minute", byDefault.FailuresPerMinute, "calls a minute with invalid API keys from one address"},
	} {
		*n.value = n.byDefault
		f.Var((*limitValue)(n.value), n.name, n.usage+"; 0 for any number")
	}
}

// limitValue is the flag of a limit, with 0 for none, which [server.Limits] has
// as a negative number.
type limitValue int

func (v *limitValue) String() string { return strconv.Itoa(max(0, int(*v))) }

func (v *limitValue) Type() string { return "int" }

func (v *limitValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return errors.New("want a whole number, 0 or more")
	}
	if *v = limitValue(n); n == 0 {
		*v = -1
	}
	return nil
}
