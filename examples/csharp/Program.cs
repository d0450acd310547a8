// dotnet run MODEL.onnx IMAGE...    prints a line of JSON an image
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using StbImageSharp;

public static class Program
{
    public static void Main(string[] arguments)
    {
        using (var session = new InferenceSession(arguments[0]))
        {
            if (!session.ModelMetadata.CustomMetadataMap.TryGetValue("pickglass", out string text))
                throw new ArgumentException("'pickglass export' did not write this file");
            JsonElement model = JsonDocument.Parse(text).RootElement, preprocess = model.GetProperty("preprocess");
            if (model.GetProperty("input").GetString() != "uint8")
                throw new ArgumentException("export the model with --input uint8");
            int[] size = preprocess.GetProperty("size").EnumerateArray().Select(side => side.GetInt32()).ToArray();
            foreach (string path in arguments.Skip(1))
            {
                var decoded = ImageResult.FromMemory(File.ReadAllBytes(path), ColorComponents.RedGreenBlue);
                var canvas = new Canvas(decoded.Data, decoded.Height, decoded.Width, size[0], size[1],
                    preprocess.GetProperty("geometry").GetString(), Number(preprocess, "side") ?? 0,
                    preprocess.GetProperty("interpolation").GetString() == "bicubic");
                var image = OrtValue.CreateTensorValueFromMemory(canvas.Pixels, new[] { 1L, size[0], size[1], 3L });
                var inputs = new Dictionary<string, OrtValue> { ["image"] = image };
                if (model.GetProperty("keep").GetBoolean())
                    inputs["keep"] = OrtValue.CreateTensorValueFromMemory(canvas.Keep, new[] { 1L, size[0], size[1] });
                using (var found = session.Run(new RunOptions(), inputs, new[] { "score", "map" })) // map: (1, h, w)
                {
                    float score = found[0].GetTensorDataAsSpan<float>()[0];
                    string verdict = Verdict(score, model.GetProperty("calibration"));
                    Console.WriteLine(JsonSerializer.Serialize(new { path, score, verdict }));
                }
                foreach (OrtValue value in inputs.Values) value.Dispose();
            }
        }
    }

    static string Verdict(float score, JsonElement calibration)
    {
        double? bad = Number(calibration, "image_threshold"), unsure = Number(calibration, "unsure_threshold");
        if (bad == null) return "no threshold";
        if (float.IsNaN(score) || float.IsInfinity(score) || score > bad) return "bad";
        return score > unsure ? "unsure" : "good"; // without a second threshold the comparison is false
    }

    static double? Number(JsonElement of, string name) => of.ValueKind == JsonValueKind.Object
        && of.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.Number
        ? value.GetDouble() : (double?)null;
}
