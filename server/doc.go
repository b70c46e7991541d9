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
// The tests run against versitygw 1.8. Two things it has otherwise than S3, which
// tests do without it: GetObjectAttributes tells no checksums of parts, and of a
// range that was copied it tells the checksum of the whole object. The second is
// recognized, and that package's checksum is then taken on trust.
//
// # Limits and failure
//
// [Limits] has what clients can make a server do at a time. Too large a header is
// 400, too many calls or downloads with one API key are 429, too many downloads
// of all clients 503, the last two with Retry-After; too many connections wait
// to be accepted. Downloads need no API key, but a signed URL tells which key it
// was made for, and counts for that. Calls with invalid API keys are throttled by
// address. What is counted is bounded in memory: 50,000 keys and addresses.
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
