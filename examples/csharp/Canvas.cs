// An image on the model's canvas, bit by bit as pickglass puts it there: resized as Pillow resizes, in 8 bits.
using System;
using System.Linq;

public class Canvas
{
    public byte[] Pixels; // (H, W, 3)
    public bool[] Keep; // (H, W)
    // rgb: row by row, 3 bytes a pixel; the rest stands in the model's metadata under "preprocess"
    public Canvas(byte[] rgb, int height, int width, int H, int W, string geometry, double side, bool cubic)
    {
        int h = H, w = W; // geometry "squeeze"; the others scale the image as a whole
        if (geometry != "squeeze")
        {
            double scale = geometry == "letterbox" ? Math.Min((double)H / height, (double)W / width) : 1;
            if (geometry == "shorter") scale = side / Math.Min(height, width);
            (h, w) = (Math.Max(1, (int)Math.Round(height * scale)), Math.Max(1, (int)Math.Round(width * scale)));
            if (geometry == "letterbox") (h, w) = (Math.Min(h, H), Math.Min(w, W));
            if (h > H || w > W) throw new ArgumentException($"{height} x {width} pixels do not fit on the canvas");
        }
        byte[] inside = Resize(Resize(rgb, height, width, w, 3, cubic), 1, height, h, w * 3, cubic);
        (Pixels, Keep) = (new byte[H * W * 3], new bool[H * W]);
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) // around the image its edge pixels are repeated; there nothing is judged
            {
                int row = Within(y - (H - h) / 2, h), column = Within(x - (W - w) / 2, w);
                Array.Copy(inside, (row * w + column) * 3, Pixels, (y * W + x) * 3, 3);
                Keep[y * W + x] = row == y - (H - h) / 2 && column == x - (W - w) / 2;
            }
    }

    static int Within(int i, int n) => Math.Min(Math.Max(i, 0), n - 1);
    static double Cubic(double x) =>
        x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0;

    // (outer, from, inner) -> (outer, to, inner): antialiased, with weights of 22 bits behind the point
    static byte[] Resize(byte[] source, int outer, int from, int to, int inner, bool cubic)
    {
        double step = (double)from / to, stretch = Math.Max(step, 1), reach = stretch * (cubic ? 2 : 1);
        var result = new byte[outer * to * inner];
        for (int x = 0; x < to; x++)
        {
            double centre = (x + 0.5) * step;
            int first = Math.Max(0, (int)(centre - reach + 0.5)), end = Math.Min(from, (int)(centre + reach + 0.5));
            var shares = Enumerable.Range(first, end - first).Select(k => Math.Abs((k - centre + 0.5) * (1 / stretch)))
                .Select(distance => cubic ? Cubic(distance) : Math.Max(0, 1 - distance)).ToArray();
            double sum = shares.Sum();
            int[] weights = shares.Select(share => (int)Math.Round(share / sum * (1 << 22))).ToArray();
            for (int o = 0; o < outer; o++)
                for (int i = 0; i < inner; i++)
                {
                    int total = 1 << 21; // a half, so that the shift rounds
                    for (int k = first; k < end; k++) total += weights[k - first] * source[(o * from + k) * inner + i];
                    result[(o * to + x) * inner + i] = (byte)Math.Min(Math.Max(total >> 22, 0), 255);
                }
        }
        return result;
    }
}
