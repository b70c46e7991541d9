// Package server implements the Download Job call: an HTTP server that packages
// a job's assets as one ZIP, which is never built but laid out and streamed from
// the assets themselves.
//
// [New] wires a server from its [Config]; [Server.Serve] runs it. With the
// defaults its state is a SQLite database in the data directory and jobs are
// folders of a bucket:
//
//	<workflow_id>/<job_id>/job.json        optional, see api/job.schema.json
//	<workflow_id>/<job_id>/inputs/...      assets
//	<workflow_id>/<job_id>/outputs/...
//
// Programs with a job database of their own set [Config.Catalog]; the assets are
// still objects of the bucket.
//
// The server also has its contract, at /openapi.yaml and /openapi.json, and a page
// at /docs that shows it and can make calls.
//
// # Backends of your own
//
// There are two ways to answer the call from a system that exists already:
//
//   - Plug your job database into this server: implement [Catalog] (one method)
//     and set [Config.Catalog]. Keys, packages, ranges and signed URLs are the
//     server's; the assets have to be in the bucket. See the example "Catalog".
//   - Implement apiserver.StrictServerInterface (one method), generated from
//     api/openapi.yaml, with whatever makes your packages. The generated code
//     decodes requests and encodes answers. It leaves to you: authentication
//     before anything else, the patterns of the parameters, one answer for
//     unknown and forbidden jobs, the envelope of all errors, those of the
//     router included, and X-Request-Id on every answer. See the example
//     "Interface".
//
// In another language, generate from api/openapi.yaml or write it by hand.
// Whichever it is, servertest.Contract runs the contract suite against it over
// HTTP and says what is not right yet.
//
// # Stores
//
// A bucket is a folder, or S3 and what speaks its protocol: listings of version 2
// with encoded keys, ranged and conditional reads, HeadObject with checksums, and
// for [Assemble] multipart uploads with conditional copies. Where a store does
// not know checksums, or does not tell, assets are read once.
//
// The tests run against versitygw 1.8, which differs from S3 in two things that are
// tested without it: GetObjectAttributes tells no checksums of parts, and of a
// range that was copied it tells the checksum of the whole object. The second is
// recognized, and that package's checksum is then taken on trust.
//
// # Architecture
//
//	                PUT .../download                        GET signed URL
//	                       |                                      |
//	server      authenticate, throttle                     check the token
//	                       |                                      |
//	download    job -> plan -> package -> signed URL       package -> layout
//	             |       |        |                               |
//	             |       |        +---- catalog (SQL) ------------+
//	             |       +- packager (River): checksums that      |
//	             |          nobody knows, read once               |
//	             |                                                |
//	bucket      list                                       vzip: headers made on
//	                                                       the fly, assets by range
//
// A plan is the list of a job's assets, each pinned to one version. Its identifier
// follows from the job and those versions, so that every server comes to the same.
// Once all checksums are known the layout is fixed: where each byte of the ZIP is.
// Servers share the database, the bucket and the signing keys, and nothing else.
// With [Assemble] the layout is also the plan of a multipart upload, which the
// packager has the store put together, and the signed URL is the store's.
//
// # Operation
//
// Save the signing keys and the database. With other signing keys all signed URLs
// that are out stop working; without the database organizations, keys and grants
// are lost. Everything else in it is made again, with the same identifiers and
// bytes. The bucket is yours.
//
// A new release migrates the database when it starts, unless
// [Config.SkipMigrations] is set, for which there is "downlinkd migrate". Servers of
// the old release go on meanwhile. Signing keys rotate with "downlinkd signing-key
// rotate": the new one signs, the older ones still verify.
//
// On SIGTERM /readyz is 503 at once; requests are accepted for
// [Config.ShutdownDelay] and running ones may finish for [Config.ShutdownTimeout].
//
// What to look at, beside the alerts in server/ops:
//
//   - status 5xx in downlink_http_requests_total: /readyz tells what is missing, the
//     log has the cause beside the X-Request-Id;
//   - outcome "error" in downlink_bucket_operations_total: the store or its
//     credentials;
//   - downlink_downloads_cut_total: assets are gone or were changed; the log names
//     them;
//   - downlink_packages_pending_bytes that does not go down: nothing reads assets;
//   - downlink_readahead_bytes at 256 MiB: small assets come more slowly.
//
// With [Config.TracerProvider], which downlinkd takes from OpenTelemetry's
// environment variables, each request is a span with its parts below it. Assets that
// are opened are counted in it, and are spans only where that takes 100 ms or fails.
// The preparation of a package is a trace of its own, linked to the request. A
// caller's traceparent is believed, and with it whether to sample; the sampler
// traceidratio decides alone.
//
// # Security
//
// What is to be protected are the assets, API keys, signing keys, the database's
// password and the credentials of the store. What holds:
//
//   - Stolen signed URL: it gives one version of one package until it expires, at
//     most seven days later. It cannot be made to lead elsewhere: the token has an
//     HMAC-SHA256.
//     With [Assemble] it is the store's, for one object, which nothing but deleting
//     that or the store's credentials ends sooner.
//   - Stolen API key: revoke it; servers may remember it, and grants, for some
//     seconds. Signed URLs that it got live until they expire, unless the signing
//     key is removed.
//   - Guessing keys: 256 random bits, stored as a hash and compared in constant
//     time; addresses that fail often are throttled.
//   - Finding out what there is: a workflow or job that does not exist and one
//     without a grant get the same answer, and the key is checked first.
//   - Malicious names of assets: made safe for every system, see manifest.json in
//     the package.
//   - Path traversal and symbolic links in a folder: nothing outside of the bucket's
//     folder is opened.
//   - Zip bombs: entries are stored, so that a package is as large as what is in
//     it; [Config.MaxEntries] and [Config.MaxBytes] bound it.
//   - Replaced assets: noticed by their version; a download fails or is cut and is
//     never mixed.
//   - Listening on the way: [Config.TLSCert], TLS 1.2 or later; answers over it
//     tell browsers to use nothing else (HSTS).
//   - Pages of other origins in a browser: no CORS but for [Config.CORSOrigins].
//     Nothing is sniffed or framed, and no URL goes out as a Referer.
//   - Other users of the machine: the data directory has mode 0700 and the signing
//     keys 0600. A file of signing keys that others may read is refused.
//   - Requests to other hosts: no address comes from a client.
//   - Many ranges, slow clients, many connections: [Limits] and
//     [Config.StallTimeout].
//   - Logs, metrics and traces have the route instead of the path, and no key.
//
// What does not:
//
//   - Whoever has a signed URL needs nothing else. Proxies in front log paths
//     unless told not to, and so do programs that open it.
//   - Whoever can write to the bucket decides what is in packages, and a job.json
//     may name any object of it. Organizations that must not see each other's
//     assets and write them themselves need a bucket and a server each.
//   - [Server.AdminHandler] asks for no key.
//   - Assets are not scanned, and encrypted only as the store and TLS do it.
//   - Without [Config.PublicURL] signed URLs start with the host that the request
//     names.
//   - A flood that fills the network in front of the server. Connections are counted
//     for all addresses together, so that one client can take all of them until
//     they time out; a firewall or proxy in front can bound them by address.
//
// # Questions about other programs
//
// Signed URLs need no key, so that any program can use them (URL=$(downlink url W1
// J1) is one). These were tried with curl 7.88, wget 1.21, aria2 1.36, GDAL 3.6 and
// QGIS 3.22.
//
// How is a download begun, and resumed? By the same command:
//
//	curl -fL -C - -O "$URL"
//	wget -c "$URL"
//	aria2c -x4 "$URL"
//
// Where the file is whole already curl exits with 22, for a 416. None of them
// notices that what is there belongs to another version of the package: with a new
// URL delete it, or use "downlink get", which does.
//
// Is what arrived right? "downlink verify W1_J1.zip" or "unzip -t W1_J1.zip" tell.
//
// What does 410 mean? That the URL has expired, or that an asset has changed since.
// The next call has a new URL. 403 means that the URL is damaged: it was cut short,
// or its signing key is gone. 429 and 503 mean to try again later: "downlink get" does
// by itself, curl with --retry 5, wget with --retry-on-http-error=429,503 and aria2,
// for 503 alone, with --retry-wait=2.
//
// How does GDAL read a file without the rest?
//
//	gdalinfo "/vsizip//vsicurl/$URL/outputs/ndvi.tif"
//	gdal_translate -srcwin 0 0 64 64 "/vsizip//vsicurl/$URL/outputs/ndvi.tif" window.tif
//	gdalwarp -t_srs EPSG:3857 "/vsizip//vsicurl/$URL/outputs/ndvi.tif" warped.tif
//
// "downlink url --gdal W1 J1" prints what comes before the name of the file, in the
// form that also fits URLs with a query (see [Assemble]), and "downlink ls W1 J1" the
// names.
//
// Why is GDAL slow? It reads 16 KiB at a time, each by a request. With
// CPL_VSIL_CURL_CHUNK_SIZE=1048576 in the environment it makes fewer of them.
//
// Why does GDAL say "does not exist in the file system"? For a wrong name, but also
// for an expired URL; curl -I "$URL" tells which. "cpl_unzOpenCurrentFile() failed"
// is an asset that has changed.
//
// How does QGIS? In Layer > Add Layer > Add Raster Layer give the same name as to
// GDAL, or in its Python console:
//
//	QgsRasterLayer("/vsizip//vsicurl/" + url + "/outputs/ndvi.tif", "ndvi")
//
// Projects of QGIS and VRT files keep the URL. It works until it expires, for
// everybody who gets the file.
//
// # Limits and failure
//
// [Limits] has what clients can make a server do at a time. Too large a header is
// 400, more than 100 ranges in a request are 416, too many calls or downloads with
// one API key are 429, too many downloads of all clients 503, the last two with
// Retry-After; too many connections wait to be accepted. Downloads need no API
// key, but a signed URL tells which key it was made for, and counts for that. Calls
// with invalid API keys are throttled by address. What is counted is bounded in
// memory: 50,000 keys and addresses.
//
// A connection of HTTP/2 has up to 100 requests at a time. All of them together
// may have as many as there may be connections, until their answers are taken;
// more are 503 without a body, which the client might not take either.
//
// TLS: a certificate that cannot be read keeps a server from starting; once it
// runs, a broken new one is logged and the old one kept. A download whose client
// takes nothing for [Config.StallTimeout] is cut, over HTTP/2 too: there its
// stream is, and its connection when that takes nothing either.
//
// # When something is gone
//
// What fails around a server makes no wrong answer and needs no restart when it
// is over. What cannot be answered meanwhile is 503 with Retry-After:
//
//   - The database is gone: every call, and packages that this server has not
//     read lately. Those that it has are served on.
//   - The database is read-only, or its disk is full: what needs a new package.
//     Those that exist are answered and served. A server does not start on a
//     SQLite file that it may not write.
//   - The bucket is gone, or its folder is missing or an empty mount point: every
//     call, and the content of assets. A folder in another one's place is taken
//     over. Downloads on their way are cut.
//   - No file descriptors are left: what has to open a file. Connections wait. The
//     defaults of [Limits] keep a server from getting there.
//   - The clock jumps. Forward, signed URLs and keys may expire early, and
//     packages are forgotten early; the next call makes them again, the same.
//     Back, they live longer by that. Limits and timeouts do not follow the
//     clock.
package server
