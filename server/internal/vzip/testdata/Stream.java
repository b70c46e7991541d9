import java.io.BufferedInputStream;
import java.io.FileInputStream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Prints the names in an archive that it reads front to back, checking every CRC-32. */
class Stream {
    public static void main(String[] args) throws Exception {
        byte[] buf = new byte[1 << 20];
        StringBuilder names = new StringBuilder();
        try (ZipInputStream in = new ZipInputStream(new BufferedInputStream(new FileInputStream(args[0]), 1 << 16))) {
            for (ZipEntry e; (e = in.getNextEntry()) != null; ) {
                long size = 0;
                for (int n; (n = in.read(buf)) >= 0; ) {
                    size += n;
                }
                if (size != e.getSize()) {
                    throw new Exception(e.getName() + " has " + size + " bytes, not " + e.getSize());
                }
                names.append(e.getName()).append('\n');
            }
        }
        System.out.write(names.toString().getBytes("UTF-8"));
        System.out.flush();
    }
}
