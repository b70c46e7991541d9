package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) urlCommand() *cobra.Command {
	var gdal bool
	cmd := &cobra.Command{
		Use:   "url WORKFLOW JOB [PATH]",
		Short: "Print the signed URL of a job's package, or how GDAL reads it in place",
		Long: `Prints the signed URL of a job's package: anyone who has it can download the
package until it expires.

With --gdal it prints the name under which GDAL reads the package in place,
without downloading it, and with PATH that of one file in it:

  gdalinfo "$(downlink url --gdal W1 J1 outputs/ndvi.tif)"`,
		Args: cobra.RangeArgs(2, 3),
		RunE: work(func(ctx context.Context, args []string) error {
			if len(args) == 3 && !gdal {
				return &usageError{errors.New("PATH goes with --gdal alone")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.WaitUntilReady(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			name := string(d.SignedURL)
			if gdal {
				name = gdalName(name)
				if len(args) == 3 {
					name += "/" + strings.TrimPrefix(args[2], "/")
				}
			}
			result := map[string]any{"id": d.ID, "url": name}
			if !d.Expires.IsZero() {
				result["expires"] = d.Expires
			}
			return a.result(result, name)
		}),
	}
	a.apiFlags(cmd)
	cmd.Flags().BoolVar(&gdal, "gdal", false, "print the name that GDAL reads it by, /vsizip//vsicurl/...")
	return cmd
}

// gdalName returns what GDAL reads the package at the URL by. Where the URL does
// not end in .zip, as those of object stores, it has to be told where that ends.
func gdalName(signedURL string) string {
	if strings.HasSuffix(signedURL, ".zip") {
		return "/vsizip//vsicurl/" + signedURL
	}
	return "/vsizip/{/vsicurl/" + signedURL + "}"
}
