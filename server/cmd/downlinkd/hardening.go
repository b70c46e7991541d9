package main

import (
	"github.com/spf13/pflag"

	"github.com/downlink-go/downlink/server"
)

// hardeningFlags are those that say who may reach the server, and how.
func hardeningFlags(f *pflag.FlagSet, config *server.Config) {
	f.StringVar(&config.TLSCert, "tls-cert", "", "file of the TLS certificate and its chain, in PEM, for HTTPS; changes are taken over")
	f.StringVar(&config.TLSKey, "tls-key", "", "file of the certificate's private key, in PEM")
	f.StringSliceVar(&config.CORSOrigins, "cors-origin", nil, "origin whose pages may use the server from a browser, such as https://maps.example.com, or * (repeatable)")
}
