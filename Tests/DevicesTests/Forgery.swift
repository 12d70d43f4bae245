import Foundation
import TestSupport

/// Replaces numbers in a saved state by others: a snapshot is a file, and files can be damaged or forged.
private func forge(_ value: Any, _ random: inout SplitMix64) -> Any {
    switch value {
    case let object as [String: Any]:
        var result = object
        for key in object.keys.sorted() { result[key] = object[key].map { forge($0, &random) } }
        return result
    case let list as [Any]: return list.map { forge($0, &random) }
    case is NSNumber where UInt8.random(in: 0..<8, using: &random) == 0:
        let numbers = [0, 1, 2, 5, 7, 8, 17, 63, 200, 255, 256, 65_535, 4_294_967_295, Int64.max, -1]
        return numbers.randomElement(using: &random) ?? 0
    default: return value
    }
}

func restoreForged<T: Codable>(
    _ state: T, _ random: inout SplitMix64, _ restore: (T) -> Void
) throws -> Int {
    let object = try JSONSerialization.jsonObject(with: JSONEncoder().encode(state))
    let forged = try JSONSerialization.data(withJSONObject: forge(object, &random))
    // Refusing it is as good as bearing it.
    guard let state = try? JSONDecoder().decode(T.self, from: forged) else { return 0 }
    restore(state)
    return 1
}
