/// A date and time of day in the Gregorian calendar, as a real-time clock counts it: without zones or leap seconds.
public struct CivilTime: Hashable, Sendable {
    public var year: Int64
    /// 1 to 12.
    public var month: Int64
    /// 1 to 31.
    public var day: Int64
    public var hour: Int64
    public var minute: Int64
    public var second: Int64
    /// 0 is Sunday.
    public var weekday: Int64 {
        let day = (secondsSince1970 / 86_400 - (secondsSince1970 % 86_400 < 0 ? 1 : 0) + 4) % 7
        return day < 0 ? day + 7 : day
    }

    private static let daysBeforeMonth: [Int64] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365]

    private static func isLeap(_ year: Int64) -> Bool { year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) }

    /// Days from the first of January 1970 to that of a year after 0.
    private static func days(before year: Int64) -> Int64 {
        let past = year - 1
        return past * 365 + past / 4 - past / 100 + past / 400 - 719_162
    }

    private static func days(beforeMonth month: Int64, in year: Int64) -> Int64 {
        daysBeforeMonth[Int(month - 1)] + (month > 2 && isLeap(year) ? 1 : 0)
    }

    /// Clamps every field to what it can be, so that a guest may write anything.
    public init(year: Int64, month: Int64, day: Int64, hour: Int64, minute: Int64, second: Int64) {
        self.year = min(max(year, 1), 9999)
        self.month = min(max(month, 1), 12)
        self.day = min(max(day, 1), 31)
        self.hour = min(max(hour, 0), 23)
        self.minute = min(max(minute, 0), 59)
        self.second = min(max(second, 0), 59)
    }

    /// Years 1 to 9999; times outside are moved to the nearest end.
    public init(secondsSince1970 seconds: Int64) {
        let seconds = min(max(seconds, Self.days(before: 1) * 86_400), Self.days(before: 10_000) * 86_400 - 1)
        var days = seconds / 86_400
        var rest = seconds % 86_400
        if rest < 0 {
            rest += 86_400
            days -= 1
        }
        // The mean year gets within one year of the right one.
        var year = 1970 + days * 400 / 146_097
        while Self.days(before: year) > days { year -= 1 }
        while Self.days(before: year + 1) <= days { year += 1 }
        days -= Self.days(before: year)
        var month: Int64 = 12
        while month > 1, Self.days(beforeMonth: month, in: year) > days { month -= 1 }
        self.year = year
        self.month = month
        day = days - Self.days(beforeMonth: month, in: year) + 1
        hour = rest / 3600
        minute = rest / 60 % 60
        second = rest % 60
    }

    /// A day that its month does not have counts into the next.
    public var secondsSince1970: Int64 {
        let month = min(max(month, 1), 12)
        let days = Self.days(before: year) + Self.days(beforeMonth: month, in: year) + day - 1
        return days * 86_400 + hour * 3600 + minute * 60 + second
    }
}
